"""Entropy as the data flows: along the residual stream, and from what each module reads to what it writes."""

from __future__ import annotations

from typing import Any, Unpack

import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.lines import Line2D

from layerlens.errors import SelectionError
from layerlens.plots.kit.axes import open_frame, title_and_legend
from layerlens.plots.kit.caption import complete_axes, describe_runs
from layerlens.plots.kit.figure import new_figure, run_layout
from layerlens.plots.kit.labels import metric_label
from layerlens.plots.kit.layer_axis import depth_axis
from layerlens.plots.kit.run_data import MeanOptions
from layerlens.plots.kit.style import MODULE_NAMES, MODULE_STYLES, styled
from layerlens.plots.kit.unusable import hatch_unusable
from layerlens.results import Run
from layerlens.types import MODULE_SITES

STREAM = {"resid_pre": -0.5, "resid_mid": 0.0, "resid_post": 0.5}
"""x of the residual sites, from the number of their layer."""

MODULES = {"attn": -0.25, "ffn": 0.25}
"""x of the modules: attention between resid_pre and resid_mid, the FFN between resid_mid and resid_post."""


@styled
def entropy_flow(run: Run, *, ax: Axes | None = None, **mean: Unpack[MeanOptions]) -> Axes:
    """Mean entropy through all sites, layer after layer.

    The line is the residual stream (resid_pre, resid_mid, resid_post of each block, with its interval as a band). Beside
    the line stand the modules of each block: an arrow from the entropy of what the module reads to the entropy of what it
    writes, with the intervals of both ends behind it. Sites and layers that the run did not analyse are left out; layers that
    are not usable at resid_post (no better than guessing) are hatched.

    Args:
        run: what to draw.
        ax: axes to draw into; a new figure by default, wider for more layers.
        mean: keyword arguments of `Run.mean`.

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
    handles = [_draw_stream(target, run, entropy, stream)] if stream else []
    handles += [_draw_module(target, run, entropy, name) for name in modules]
    _draw_stripes(target, run.layers)
    open_frame(target)
    run_layout(target)
    depth_axis(target, [run], relative=False)
    target.set_xlim(run.layers[0] - 0.75, run.layers[-1] + 0.75)
    low, high = target.get_ylim()
    target.set_ylim(-0.02 * high if low < 0.25 * high else low, high)
    target.set_ylabel(metric_label("entropy"))
    title_and_legend(target, run.model, handles)
    arrows = "arrows: from the entropy of what a module reads (bar) to that of what it writes (tip)" if modules else ""
    hatched = hatch_unusable(target, [run], "resid_post", False, mean)
    complete_axes(target, describe_runs(run, entropy.attrs, shows=[arrows, hatched]), given=ax)
    return target


def _draw_stream(ax: Axes, run: Run, entropy: xr.Dataset, sites: list[str]) -> Line2D:
    """Draws the residual stream; a dotted line bridges layers that were not analysed. Returns its legend entry."""
    points: list[tuple[float, float, float, float]] = []
    for layer in run.layers:
        for site in sites:
            if site == "resid_pre" and layer - 1 in run.layers and "resid_post" in sites:
                continue  # the same state as resid_post of the layer before, which is drawn already
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
    style: dict[str, Any] = {"color": "black", "linewidth": 2.2, "marker": "." if single else "", "markersize": 6}
    return ax.plot(x, middle, solid_joinstyle="round", label="residual stream", zorder=3, **style)[0]


def _draw_module(ax: Axes, run: Run, entropy: xr.Dataset, name: str) -> Line2D:
    """Draws an arrow per layer from a module's input to its output. Returns their legend entry."""
    style = MODULE_STYLES[name]
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


def _draw_stripes(ax: Axes, layers: list[int]) -> None:
    """Gives every second block a light ground."""
    for layer in layers:
        if layer % 2 == 0:
            ax.axvspan(layer - 0.5, layer + 0.5, color="0.955", linewidth=0, zorder=-2, in_layout=False)
