"""Entropy as the data flows: along the residual stream, and from what each module reads to what it writes."""

from __future__ import annotations

from typing import Any, Unpack

import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.lines import Line2D

from layerlens.errors import SelectionError
from layerlens.plots.axis import depth_axis, head, open_frame
from layerlens.plots.canvas import new_figure, settle
from layerlens.plots.caption import describe, finish
from layerlens.plots.data import MeanOptions
from layerlens.plots.labels import metric_label
from layerlens.plots.style import MODULE_LOOKS, MODULE_NAMES, styled
from layerlens.results import Run
from layerlens.types import MODULE_SITES

STREAM = {"resid_pre": -0.5, "resid_mid": 0.0, "resid_post": 0.5}
"""Where the stream's sites lie around the number of their layer."""

MODULES = {"attn": -0.25, "ffn": 0.25}
"""Where the modules lie: attention between resid_pre and resid_mid, the FFN between resid_mid and resid_post."""


@styled
def entropy_flow(run: Run, *, ax: Axes | None = None, **mean: Unpack[MeanOptions]) -> Axes:
    """Mean entropy through all sites, layer after layer.

    The line is the residual stream (resid_pre, resid_mid, resid_post of each block, with its interval as a band). Beside
    it stand the modules of each block: an arrow from the entropy of what the module reads to that of what it writes, with
    the interval of both ends behind it. What the run did not analyse is left out.

    Args:
        ax: axes to draw into; a new figure by default, wider for more layers.
        mean: as in `Run.mean`.

    Raises:
        SelectionError: the run holds no entropies, or neither a residual site nor both sites of a module.
    """
    entropy = run.mean("entropy", **mean)
    stream = [site for site in STREAM if site in run.sites]
    modules = [name for name in MODULES if set(MODULE_SITES[name]) <= set(run.sites)]  # type: ignore[index]
    if not stream and not modules:
        raise SelectionError(
            f"the run of {run.model} has only {', '.join(run.sites)}: analyse it at a residual site, or at a module's in and out"
        )
    target = ax or new_figure(float(np.clip(3.6 + 0.17 * len(run.layers), 5, 10)), 4.0).subplots()
    handles = [_stream(target, run, entropy, stream)] if stream else []
    handles += [_module(target, run, entropy, name) for name in modules]
    _stripes(target, run.layers)
    open_frame(target)
    settle(target)
    depth_axis(target, [run], relative=False)
    target.set_xlim(run.layers[0] - 0.75, run.layers[-1] + 0.75)
    low, high = target.get_ylim()
    target.set_ylim(-0.02 * high if low < 0.25 * high else low, high)
    target.set_ylabel(metric_label("entropy"))
    head(target, run.model, handles)
    arrows = "arrows: from the entropy of what a module reads (bar) to that of what it writes (tip)" if modules else ""
    return finish(target, ax, describe(run, entropy.attrs, shows=arrows))


def _stream(ax: Axes, run: Run, entropy: xr.Dataset, sites: list[str]) -> Line2D:
    """The residual stream; a dotted line bridges layers that were not analysed."""
    points: list[tuple[float, float, float, float]] = []
    for layer in run.layers:
        for site in sites:
            if site == "resid_pre" and layer - 1 in run.layers and "resid_post" in sites:
                continue  # the layer before has drawn this very state
            here = entropy.sel(layer=layer, site=site)
            if np.isnan(here["mean"]):
                continue
            points.append((layer + STREAM[site], float(here["mean"]), float(here["low"]), float(here["high"])))
    x, middle, low, high = np.array(points).reshape(-1, 4).T
    gaps = np.flatnonzero(np.diff(x) > 1.01) + 1
    if len(gaps):
        ax.plot(x, middle, color="0.5", linewidth=0.9, linestyle=":", zorder=2.5)
        x, middle, low, high = (np.insert(values, gaps, np.nan) for values in (x, middle, low, high))
    known = np.isfinite(low) & np.isfinite(high)
    if known.any():
        ax.fill_between(x, low, high, where=known.tolist(), color="black", alpha=0.18, linewidth=0, zorder=2.6)
    single = len(x) < 2 or len(gaps) > 0
    look: dict[str, Any] = {"color": "black", "linewidth": 2.2, "marker": "." if single else "", "markersize": 6}
    return ax.plot(x, middle, solid_joinstyle="round", label="residual stream", zorder=3, **look)[0]


def _module(ax: Axes, run: Run, entropy: xr.Dataset, name: str) -> Line2D:
    """Arrows from a module's input to its output, one per layer; their handle for the legend."""
    style = MODULE_LOOKS[name]
    before, after = (entropy.sel(site=site) for site in MODULE_SITES[name])  # type: ignore[index]
    x = np.asarray(run.layers, float) + MODULES[name]
    start, end = before["mean"].values, after["mean"].values
    for ends in (before, after):
        low, high = ends["low"].values, ends["high"].values
        known = np.isfinite(low) & np.isfinite(high)
        ax.vlines(x[known], low[known], high[known], color=style.color, linewidth=4.5, alpha=0.28, zorder=1.5)
    width = 1.5 if style.filled else 1.0
    ax.vlines(x, start, end, color=style.color, linewidth=width, zorder=2)
    ax.plot(x, start, linestyle="", marker="_", markersize=4.5, markeredgewidth=1.2, color=style.color, zorder=2.1)
    tip: dict[str, Any] = {"color": style.color, "markersize": 4.6, "markerfacecolor": style.color if style.filled else "white"}
    for marker, chosen in (("^", end >= start), ("v", end < start)):
        ax.plot(x[chosen], end[chosen], linestyle="", marker=marker, zorder=2.2, **tip)
    return Line2D([], [], linewidth=width, marker="^", label=f"{MODULE_NAMES[name]}: in → out", **tip)


def _stripes(ax: Axes, layers: list[int]) -> None:
    """A light ground under every second block, to tell them apart."""
    for layer in layers:
        if layer % 2 == 0:
            ax.axvspan(layer - 0.5, layer + 0.5, color="0.955", linewidth=0, zorder=-2, in_layout=False)
