"""Curves by layer: a metric's mean with its interval, for one model or several on relative depth."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Unpack

import numpy as np
import xarray as xr
from matplotlib.axes import Axes

from layerlens.errors import SelectionError
from layerlens.plots.axis import by_share, depth, depth_axis, draw_band, head, labels_of, log_axis, open_frame
from layerlens.plots.canvas import new_figure, settle
from layerlens.plots.caption import add_caption, describe, finish
from layerlens.plots.data import MeanOptions, as_runs, at, require_metric
from layerlens.plots.labels import metric_label
from layerlens.plots.style import MODULE_NAMES, SCALES, Look, look, styled
from layerlens.results import Run


def draw_curve(ax: Axes, x: np.ndarray, mean: xr.Dataset, style: Look, label: str, *, markers: int = 12) -> None:
    """A mean with its interval as a band; about `markers` of its points marked. NaN intervals draw no band."""
    middle, low, high = (mean[name].values.astype(np.float64) for name in ("mean", "low", "high"))
    middle = np.where(np.isfinite(middle), middle, np.nan)
    draw_band(ax, x, low, high, style.color)
    ax.plot(
        x, middle, color=style.color, linestyle=style.linestyle, marker=style.marker, markevery=max(1, round(len(x) / markers)),
        markerfacecolor=style.color if style.filled else "white", markeredgewidth=0.9, label=label,
    )  # fmt: skip


@styled
def metric_by_layer(
    runs: Run | Sequence[Run],
    metric: str = "entropy",
    site: str = "resid_post",
    *,
    relative: bool | None = None,
    ax: Axes | None = None,
    **mean: Unpack[MeanOptions],
) -> Axes:
    """Any metric's mean by layer, with its bootstrap interval.

    Args:
        runs: one, or several to compare.
        metric: `entropy`, `agrees`, `kl_to_final`, `logp_next`, `perplexity` (logarithmic axis), `kl_from_layer`, ...
        site: where it is read; for `entropy_change` and `stream_cosine` a module.
        relative: depth as l / L; by default where the models differ in depth.
        ax: axes to draw into; a new figure by default.
        mean: as in `Run.mean`.

    Raises:
        SelectionError: a run lacks the metric or the site.
    """
    return _draw(as_runs(runs), metric, site, by_share(as_runs(runs), relative), "nats", ax, mean)


@styled
def entropy_curves(
    runs: Run | Sequence[Run],
    site: str = "resid_post",
    *,
    scale: str = "nats",
    relative: bool = True,
    ax: Axes | None = None,
    **mean: Unpack[MeanOptions],
) -> Axes:
    """Mean entropy over depth, one line per model with its interval.

    Args:
        site: where it is read; a residual site shows how each model's policy converges.
        scale: "nats", or "share" for shares of each curve's own maximum, where vocabularies differ in size.
        relative: depth as l / L.
        ax: axes to draw into; a new figure by default.
        mean: as in `Run.mean`.

    Raises:
        SelectionError: a run lacks entropy at the site, or the scale is unknown.
    """
    _check_scale(scale)
    return _draw(as_runs(runs), "entropy", site, relative, scale, ax, mean)


@styled
def compare_families(runs: Sequence[Run], *, scale: str = "nats", **mean: Unpack[MeanOptions]) -> np.ndarray:
    """Two axes on relative depth: entropy of the residual stream, and ΔS of the FFN, one line per model in both.

    Returns:
        An array of the two Axes.

    Raises:
        SelectionError: a run lacks the entropies of resid_post, ffn_in or ffn_out.
    """
    runs = as_runs(runs)
    _check_scale(scale)
    figure = new_figure(8.2, 3.6 + 0.1 * len(runs))
    left, right = figure.subplots(1, 2)
    attrs = _lines(left, runs, "entropy", "resid_post", True, scale, mean)
    _lines(right, runs, "entropy_change", "ffn", True, "nats", mean)
    for ax in (left, right):
        depth_axis(ax, runs, relative=True)
    left.set_title("residual stream (resid_post)")
    right.set_title("FFN")
    handles, labels = left.get_legend_handles_labels()
    if labels:  # one run alone has no legend
        widest = max(map(len, labels)) * 0.6 * 7 + 40
        figure.legend(handles, labels, loc="outside upper center", ncols=min(len(labels), max(1, int(8.0 * 72 // widest))), handlelength=3)
    add_caption(figure, describe(runs, attrs))
    return np.array([left, right], dtype=object)


def _check_scale(scale: str) -> None:
    if scale not in ("nats", "share"):
        raise SelectionError(f"scale must be 'nats' or 'share', got {scale!r}")


def _draw(runs: list[Run], metric: str, site: str, relative: bool, scale: str, ax: Axes | None, options: MeanOptions) -> Axes:
    layers = max(len(run.layers) for run in runs)
    target = ax or new_figure(float(np.clip(4.2 + 0.06 * layers, 4.6, 7)), 3.2 + 0.1 * len(runs)).subplots()
    attrs = _lines(target, runs, metric, site, relative, scale, options)
    settle(target)
    depth_axis(target, runs, relative)
    head(target, MODULE_NAMES.get(site, site) if len(runs) > 1 else f"{runs[0].model} · {MODULE_NAMES.get(site, site)}")
    return finish(target, ax, describe(runs, attrs))


def _lines(ax: Axes, runs: list[Run], metric: str, site: str, relative: bool, scale: str, options: MeanOptions) -> list[dict[str, object]]:
    """Draws a line per run, and the axes around them; the attrs of each one's mean."""
    attrs = []
    for number, (run, label) in enumerate(zip(runs, labels_of(runs), strict=True)):
        require_metric(run, metric)
        curve = at(run.mean(metric, **options), site, run)
        attrs.append(dict(curve.attrs))
        if scale == "share":
            curve = curve / curve["mean"].max()
        draw_curve(ax, depth(run, relative), curve, look(number), label if len(runs) > 1 else "", markers=12 if len(runs) > 1 else 48)
    open_frame(ax)
    ax.set_ylabel(metric_label(metric) if scale == "nats" else "mean entropy, share of its maximum")
    if SCALES[metric].centred:
        ax.axhline(0, color="0.4", linewidth=0.7, zorder=0)
    elif SCALES[metric].log:
        log_axis(ax)
    elif metric == "agrees" or scale == "share":
        ax.set_ylim(0, 1.05)
    elif 0 <= min(float(line.get_ydata().min()) for line in ax.lines) < 0.4 * ax.get_ylim()[1]:  # type: ignore[union-attr]
        ax.set_ylim(bottom=0)
    return attrs
