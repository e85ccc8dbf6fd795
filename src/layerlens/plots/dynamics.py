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
    MEAN,
    SWITCH,
    Series,
    describe_logs,
    draw_series,
    interval_text,
    legend_above,
    mark_phases,
    phase_text,
    series_of,
    smoothing_text,
    smoothing_window,
    step_axis,
)
from layerlens.plots.style import SCALES, Scale, look, styled
from layerlens.results.training_log import TrainingLog

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
    columns = min(len(metrics), columns or (3 if len(metrics) > 4 else 2))
    rows = ceil(len(metrics) / columns)
    figure = new_figure(max(4.6, 3.3 * columns), 1.0 + 2.0 * rows + 0.1 * len(logs))
    grid = figure.subplots(rows, columns, sharex=True, squeeze=False)
    for ax in list(grid.flat)[len(metrics) :]:
        ax.remove()
    axes: np.ndarray = np.array(list(grid.flat)[: len(metrics)], dtype=object)
    for place, (ax, metric) in enumerate(zip(axes, metrics, strict=True)):
        for number, (log, one) in enumerate(zip(logs, series[metric], strict=True)):
            draw_series(ax, one, look(number), log.name, smoothing_window(one, smooth), log.internal)
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
    watched = " / ".join(dict.fromkeys(f"layer {log.watched}" for log in logs))
    shows = [
        f"similarity and KL of {watched}" if {"similarity/above", "kl/above"} & set(metrics) else "",
        "full policy under its own final norm" if {"policy_entropy", "perplexity"} & set(metrics) else "",
        smoothing_text([smoothing_window(one, smooth) for one in dense]) if dense else "",
        "thin: looks of the monitor" if looked else "",
        interval_text([one for metric in metrics for one in series[metric]]),
    ]
    add_caption(figure, describe_logs(logs, *shows))
    settle(axes[0])
    for ax in axes:
        dress(ax)
    return axes


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
    switched = any(line.get_gid() == SWITCH for line in target.lines)
    dashed = f"dashed: end of the internal phase ({'; '.join(map(phase_text, log.internal))})" if switched else ""
    missing = "" if "hatched" in shows else hatched(values)
    means = MEAN if mean else ""
    return finish(target, ax, describe_logs([log], "a column per look", shows, missing, outlined, dashed, means, "no interval"))
