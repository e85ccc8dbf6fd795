"""Figures of a training run: what it earns, and what happens inside the model meanwhile."""

from __future__ import annotations

from collections.abc import Sequence
from math import ceil

import numpy as np
from matplotlib.axes import Axes
from matplotlib.patches import Rectangle

from layerlens.errors import SelectionError
from layerlens.plots.axis import dress, log_axis, open_frame, set_title
from layerlens.plots.canvas import new_figure, settle
from layerlens.plots.caption import add_caption, finish
from layerlens.plots.labels import metric_label, plain
from layerlens.plots.looks import by_layer, draw_looks
from layerlens.plots.mesh import hatched
from layerlens.plots.steps import (
    Series,
    column,
    draw_series,
    figure_legend,
    legend_above,
    mark_phases,
    phase_patches,
    series_of,
    smoothing_text,
    smoothing_window,
    step_axis,
)
from layerlens.plots.style import SCALES, Scale, look, styled
from layerlens.results.training import TrainingLog

LABELS = {
    "reward": "mean reward of a step's completions",
    "entropy": "entropy of the policy in training [nats]",
    "completions/mean_length": "length of a step's completions [tokens]",
    "policy_entropy": "mean entropy of the full policy [nats]",
    "perplexity": "perplexity of the full policy",
    "response_length": "mean response length [tokens]",
    "similarity/above": "mean cosine similarity to the layers above",
    "kl/above": "mean KL to the policies above [nats]",
    "stability/answers": "pairs with the same answer [share]",
    "stability/entropy_path": "correlation of entropy paths",
}
"""How axes name what is drawn; anything else goes by the name it has in the log."""

MEAN = "mean of per-sample means, response rows"
"""How the monitor averages over its probe."""


@styled
def training_dynamics(
    logs: TrainingLog | Sequence[TrainingLog],
    metrics: Sequence[str] = ("reward", "policy_entropy", "response_length", "perplexity"),
    *,
    smooth: int | None = None,
    columns: int | None = None,
) -> np.ndarray:
    """A panel per metric over the optimizer steps, any number of runs in each; internal phases shaded, their ends marked.

    What the trainer logs (`reward`, `entropy`, `completions/mean_length`, ...) is a thick smoothed line over the faint one as
    logged; what the monitor sees (`policy_entropy`, `perplexity`, `response_length`, ...) is a thin line from look to look.

    Args:
        logs: one, or several to compare.
        metrics: columns of the monitor or of the log.
        smooth: log entries of the centred mean, taken within a phase; 1 draws the log alone, None chooses by length.
        columns: of the grid.

    Returns:
        An array of Axes, one per metric.

    Raises:
        SelectionError: no log or metric is given, a run lacks a metric, or smooth is under 1.
    """
    return _panels(_as_logs(logs), list(metrics), smooth, columns)


@styled
def stability(logs: TrainingLog | Sequence[TrainingLog]) -> np.ndarray:
    """How far repeated answers to one problem agree over training, in the answer and in the path that entropy takes.

    Returns:
        An array of two Axes.

    Raises:
        SelectionError: a run's monitor took one answer per problem, or there is none.
    """
    axes = _panels(_as_logs(logs), ["stability/answers", "stability/entropy_path"], None, 2)
    axes[0].set_ylim(-0.03, 1.03)
    axes[1].set_ylim(min(-0.03, axes[1].get_ylim()[0]), 1.03)
    return axes


@styled
def layer_entropy_over_steps(log: TrainingLog, *, change: bool = False, ax: Axes | None = None) -> Axes:
    """Mean entropy of every layer's policy (at resid_post), layer × look; the layer in training is outlined.

    Args:
        change: what has changed since the first look instead, in colours that diverge from zero.
        ax: axes to draw into; a new figure by default.

    Raises:
        SelectionError: the run has no monitor.
    """
    steps, layers, values = by_layer(log, "entropy/layer_")
    scale, label, shows = SCALES["entropy"], metric_label("entropy"), "resid_post"
    if change:
        values = values - values[:, :1]
        scale, label = Scale("RdBu_r", centred=True), f"mean entropy of the internal policy, change since step {steps[0]} [nats]"
    return _heatmap(log, steps, layers, values, scale, label, shows, ax)


@styled
def drift(log: TrainingLog, *, ax: Axes | None = None) -> Axes:
    """How far the weights of each layer have moved, layer × look: ‖W - W₀‖ / ‖W₀‖. What has not moved at all is left open.

    The embedding (and the unembedding, where it is not tied to it) lie under and over the layers.

    Args:
        ax: axes to draw into; a new figure by default.

    Raises:
        SelectionError: the run has no monitor, or no look since its start.
    """
    steps, layers, values = by_layer(log, "drift/layer_")
    ends = {0: "drift/embedding", layers[-1] + 1: "drift/unembedding"}
    for row, name in ends.items():
        if name in log.monitor.columns:
            values = np.insert(values, 0 if row == 0 else len(values), log.monitor[name].to_numpy(np.float64), axis=0)
            layers = [row, *layers] if row == 0 else [*layers, row]
    later = steps > 0  # nothing has moved at the start
    if not later.any():
        raise SelectionError(f"the monitor of {log.name} has looked at the start only: nothing can have moved yet")
    moved = np.where(values[:, later] > 0, values[:, later], np.nan)
    shows = "" if np.isfinite(moved).all() else "hatched: not moved at all"
    label = "drift of weights  ‖W − W₀‖ / ‖W₀‖"
    target = _heatmap(log, steps[later], layers, moved, Scale("viridis", low=0.0), label, shows, ax, mean=False)
    named = {row: ends[row].split("/")[1] for row in layers if row in ends}
    numbered = [int(tick) for tick in target.get_yticks() if int(tick) not in named]
    ticks = sorted({*numbered, *named})
    target.set_yticks(ticks, [named.get(tick, str(tick)) for tick in ticks])
    return target


@styled
def refinement(log: TrainingLog) -> np.ndarray:
    """The trained layer and the layers above it: how alike their residual streams are, and how far their policies lie apart.

    On the left the mean over the layers above, the next and the last of them; on the right every layer above, layer × look.

    Returns:
        A 2 × 2 array of Axes: similarity above, KL from the layer's policy to the others' below.

    Raises:
        SelectionError: the run has no monitor, or it watched the last layer, which has none above.
    """
    figure = new_figure(8.4, 5.0)
    axes: np.ndarray = figure.subplots(2, 2, width_ratios=(1, 1.05), squeeze=False)
    parts = (
        ("similarity/", metric_label("similarity", mean=False), SCALES["similarity"]),
        ("kl/", f"KL(π of layer {log.watched} ‖ π) [nats]", Scale("magma")),
    )
    for (left, right), (prefix, label, scale) in zip(axes, parts, strict=True):
        steps, above, values = by_layer(log, f"{prefix}to_")
        names = {f"mean of layers {above[0]} to {above[-1]}" if len(above) > 1 else f"layer {above[0]}": "above"}
        if len(above) > 1:
            names |= {f"layer {above[0]}, the next": f"to_{above[0]}", f"layer {above[-1]}, the last": f"to_{above[-1]}"}
        curves = {name: column(log.monitor, prefix + key) for name, key in names.items()}
        for number, (name, curve) in enumerate(curves.items()):
            draw_series(left, curve, look(number), name, 1)
        mark_phases(left, [log])
        open_frame(left)
        step_axis(left)
        left.set_ylabel(label)
        draw_looks(right, log, steps, above, values, scale, label)
    axes[1, 0].set_ylim(bottom=min(0.0, axes[1, 0].get_ylim()[0]))
    handles = [*axes[0, 0].get_legend_handles_labels()[0], *phase_patches(log.internal)]
    figure_legend(figure, handles)
    shows = f"layer {log.watched} against the layers above it"
    add_caption(figure, _caption([log], shows, hatched(values), MEAN, _interval(list(curves.values()))))
    settle(axes[0, 0])
    for row, title in enumerate(("similarity of the residual stream (resid_post)", "KL to the policies above (resid_post)")):
        set_title(axes[row, 0], log.name if row == 0 else "", pad=5.0)
        set_title(axes[row, 1], title, pad=16.0 if log.internal else 5.0)
    for ax in axes.flat:
        dress(ax)
    return axes


def _as_logs(logs: TrainingLog | Sequence[TrainingLog]) -> list[TrainingLog]:
    listed = [logs] if isinstance(logs, TrainingLog) else list(logs)
    if not listed:
        raise SelectionError("no training log to draw: pass at least one, as open_training gives it")
    return listed


def _panels(logs: list[TrainingLog], metrics: list[str], smooth: int | None, columns: int | None) -> np.ndarray:
    if not metrics:
        raise SelectionError("no metric to draw: name columns of the monitor or of the log")
    if smooth is not None and smooth < 1:
        raise SelectionError(f"smooth counts log entries, 1 or more; got {smooth}")
    series = {metric: [series_of(log, metric) for log in logs] for metric in metrics}
    windows = [smoothing_window(log, smooth) for log in logs]
    columns = min(len(metrics), columns or (3 if len(metrics) > 4 else 2))
    rows = ceil(len(metrics) / columns)
    figure = new_figure(max(4.6, 3.3 * columns), 1.0 + 2.0 * rows + 0.1 * len(logs))
    grid = figure.subplots(rows, columns, sharex=True, squeeze=False)
    for ax in list(grid.flat)[len(metrics) :]:
        ax.remove()
    axes: np.ndarray = np.array(list(grid.flat)[: len(metrics)], dtype=object)
    for place, (ax, metric) in enumerate(zip(axes, metrics, strict=True)):
        for number, (log, one, window) in enumerate(zip(logs, series[metric], windows, strict=True)):
            draw_series(ax, one, look(number), log.name, window, log.internal)
        mark_phases(ax, logs)
        open_frame(ax)
        ax.set_ylabel(LABELS.get(metric, plain(metric)))
        if metric == "perplexity" and _spread(series[metric]) > 10:
            log_axis(ax)
        step_axis(ax)
        if place + columns < len(metrics):
            ax.set_xlabel("")
        ax.tick_params(labelbottom=place + columns >= len(metrics))
    legend_above(axes[0], logs)
    dense = [one for metric in metrics for one in series[metric] if one.dense]
    looked = any(not one.dense for metric in metrics for one in series[metric])
    shows = [
        "full policy under its own final norm" if {"policy_entropy", "perplexity"} & set(metrics) else "",
        smoothing_text(windows) if dense else "",
        "thin: looks of the monitor" if looked else "",
        _interval([one for metric in metrics for one in series[metric]]),
    ]
    add_caption(figure, _caption(logs, *shows))
    settle(axes[0])
    for ax in axes:
        dress(ax)
    return axes


def _interval(series: Sequence[Series]) -> str:
    return "bands: 95% bootstrap interval over problems" if any(one.has_interval for one in series) else "no interval"


def _spread(series: list[Series]) -> float:
    values = np.concatenate([one.values[np.isfinite(one.values)] for one in series])
    return float(values.max() / values.min()) if len(values) and values.min() > 0 else 1.0


def _heatmap(
    log: TrainingLog, steps: np.ndarray, rows: list[int], values: np.ndarray, scale: Scale, label: str, shows: str, ax: Axes | None,
    *, mean: bool = True,
) -> Axes:  # fmt: skip
    size = np.clip(2.6 + 0.17 * len(steps), 4.4, 8), np.clip(1.7 + 0.13 * len(rows), 3, 7)
    target = ax or new_figure(float(size[0]), float(size[1])).subplots()
    draw_looks(target, log, steps, rows, values, scale, label)
    set_title(target, log.name, pad=16.0 if log.internal else 5.0)
    outlined = "outlined: the layer in training" if any(isinstance(patch, Rectangle) for patch in target.patches) else ""
    missing = "" if "hatched" in shows else hatched(values)
    return finish(target, ax, _caption([log], "a column per look", shows, missing, outlined, MEAN if mean else "", "no interval"))


def _caption(logs: Sequence[TrainingLog], *shows: str) -> str:
    """What is shown, of which models, under which norm, on how many probe problems."""
    models = ", ".join(dict.fromkeys(plain(log.model) for log in logs))
    norms = " / ".join(dict.fromkeys(log.norm for log in logs if log.norm))
    counts = " / ".join(dict.fromkeys(str(log.problems) for log in logs if log.problems))
    parts = [
        models,
        f"internal policies under norm: {norms}" if norms else "",
        f"probe of {counts} problems" if counts else "",
        *shows,
    ]
    return "\u00a0· ".join(part for part in parts if part)
