"""Curves with their intervals."""

from __future__ import annotations

import numpy as np
import xarray as xr
from matplotlib.axes import Axes

from layerlens.errors import SelectionError
from layerlens.metrics.curves import shares_of_maximum
from layerlens.plots.kit.axes import log_axis, open_frame, title_and_legend
from layerlens.plots.kit.caption import complete_axes, describe_runs
from layerlens.plots.kit.figure import new_figure, run_layout
from layerlens.plots.kit.labels import metric_label
from layerlens.plots.kit.layer_axis import depth, depth_axis
from layerlens.plots.kit.run_data import MeanOptions, legend_names, mean_at, require_metric
from layerlens.plots.kit.scale import SCALES
from layerlens.plots.kit.style import MODULE_NAMES, LineStyle, line_style
from layerlens.plots.kit.unusable import hatch_unusable
from layerlens.results import Run

PARTS = ("mean", "low", "high")


def draw_band(ax: Axes, x: np.ndarray, low: np.ndarray, high: np.ndarray, color: str) -> None:
    """An interval as a band, where both its ends are finite."""
    known = np.isfinite(low) & np.isfinite(high)
    if known.any():
        ax.fill_between(x, low, high, where=known.tolist(), color=color, alpha=0.2, linewidth=0)


def draw_curve(ax: Axes, x: np.ndarray, mean: xr.Dataset, style: LineStyle, label: str, *, markers: int = 12) -> None:
    """A `mean` with its interval from `low` to `high` as a band; about `markers` of its points marked. NaN intervals draw no band."""
    middle, low, high = (mean[name].values.astype(np.float64) for name in PARTS)
    middle = np.where(np.isfinite(middle), middle, np.nan)
    draw_band(ax, x, low, high, style.color)
    ax.plot(
        x, middle, color=style.color, linestyle=style.linestyle, marker=style.marker, markevery=max(1, round(len(x) / markers)),
        markerfacecolor=style.color if style.filled else "white", markeredgewidth=0.9, label=label,
    )  # fmt: skip


def check_scale(scale: str) -> None:
    """Raises SelectionError if a curve cannot be drawn in this unit."""
    if scale not in ("nats", "share"):
        raise SelectionError(f"scale must be 'nats' or 'share', got {scale!r}")


def draw_metric(
    ax: Axes, runs: list[Run], metric: str, site: str, relative: bool, scale: str, options: MeanOptions
) -> tuple[list[dict[str, object]], str]:
    """Draws a line per run of the metric's mean by layer, and the axes around them.

    Args:
        site: where the metric is read, or of which module.
        relative: whether x is relative depth.
        scale: "share" divides each curve by its maximum, "nats" leaves the metric's unit.
        options: of `Run.mean`.

    Returns:
        The attrs of the mean of each run, and what a caption must say of layers that are hatched since they are not usable.
    """
    require_metric(metric)
    attrs = []
    for number, (run, name) in enumerate(zip(runs, legend_names(runs), strict=True)):
        curve = mean_at(run.mean(metric, **options), site, run)
        attrs.append(dict(curve.attrs))
        if scale == "share":
            shares = shares_of_maximum(*(curve[part].values for part in PARTS))
            curve = curve.copy(data=dict(zip(PARTS, shares, strict=True)))
        several = len(runs) > 1
        draw_curve(ax, depth(run, relative), curve, line_style(number), name if several else "", markers=12 if several else 48)
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
    hatched = {"entropy": site, "entropy_change": "resid_post"}.get(metric)
    return attrs, "" if hatched is None else hatch_unusable(ax, runs, hatched, relative, options)


def metric_curves(runs: list[Run], metric: str, site: str, relative: bool, scale: str, ax: Axes | None, options: MeanOptions) -> Axes:
    """Draws `draw_metric` into axes of its own or the caller's, with title, legend and caption."""
    layers = max(len(run.layers) for run in runs)
    target = ax or new_figure(float(np.clip(4.2 + 0.06 * layers, 4.6, 7)), 3.2 + 0.1 * len(runs)).subplots()
    attrs, hatched = draw_metric(target, runs, metric, site, relative, scale, options)
    run_layout(target)
    depth_axis(target, runs, relative)
    place = MODULE_NAMES.get(site, site)
    title_and_legend(target, place if len(runs) > 1 else f"{runs[0].model} · {place}")
    complete_axes(target, describe_runs(runs, attrs, shows=[hatched]), given=ax)
    return target
