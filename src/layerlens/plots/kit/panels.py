"""A panel per metric over the optimizer steps, for any number of training runs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from math import ceil

import numpy as np
from matplotlib.artist import Artist
from matplotlib.lines import Line2D

from layerlens.errors import SelectionError
from layerlens.plots.kit.caption import MONITOR_MEAN, complete_axes, describe_logs
from layerlens.plots.kit.figure import new_figure
from layerlens.plots.kit.labels import numbered, plain
from layerlens.plots.kit.series import Series, column, series_of
from layerlens.plots.kit.steps import (
    draw_series,
    figure_legend,
    frame_steps,
    interval_text,
    phase_patches,
    phase_text,
    smoothing_text,
    window_of,
)
from layerlens.plots.kit.style import line_style
from layerlens.results.training_log import CHANGE, DISTILL, TrainingLog

LABELS = {
    "reward": "mean reward of a step's completions",
    "entropy": "entropy of the policy in training [nats]",
    "completions/mean_length": "length of a step's completions [tokens]",
    "policy_entropy": "mean entropy of the final policy [nats]",
    "perplexity": "log perplexity of the final policy [nats per token]",
    "response_length": "mean response length [tokens]",
    "settling_depth": "mean settling depth [layer]",
    "similarity/above": "mean cosine similarity to the layers above",
    "kl/above": "mean KL to the policies above [nats]",
    "stability/answers": "pairs with the same answer [share]",
    "stability/entropy_path": "correlation of entropy paths",
    "token_mask/kept": "tokens that count [share]",
}
"""Axis labels; any other metric goes by its name in the log."""

OF_ANSWERS = ("response_length", "stability/answers", "stability/entropy_path")
"""Metrics of the monitor that are means over whole answers, not over rows."""


def draw_panels(logs: list[TrainingLog], metrics: list[str], smooth: int | None, columns: int | None, change: bool = False) -> np.ndarray:
    """Draws a panel per metric with a line per run.

    Args:
        logs: one, or several to compare.
        metrics: columns of the monitor or of the log.
        smooth, columns, change: as in `training_dynamics`.

    Returns:
        An array of Axes, one per metric.

    Raises:
        SelectionError: no metric is given, a run lacks one, or `smooth` is under 1.
    """
    if not metrics:
        raise SelectionError("no metric to draw: name columns of the monitor or of the log")
    if smooth is not None and smooth < 1:
        raise SelectionError(f"smooth counts log entries, 1 or more; got {smooth}")
    series = {metric: [_drawn(log, metric, change) for log in logs] for metric in metrics}
    columns = min(len(metrics), columns or (3 if len(metrics) > 4 else 2))
    rows = ceil(len(metrics) / columns)
    figure = new_figure(max(4.6, 3.3 * columns), 1.0 + 2.0 * rows + 0.1 * len(logs))
    grid = figure.subplots(rows, columns, sharex=True, squeeze=False)
    for ax in list(grid.flat)[len(metrics) :]:
        ax.remove()
    axes: np.ndarray = np.array(list(grid.flat)[: len(metrics)], dtype=object)
    for place, (ax, metric) in enumerate(zip(axes, metrics, strict=True)):
        for number, (log, one) in enumerate(zip(logs, series[metric], strict=True)):
            draw_series(ax, one, line_style(number), log.name, smooth, log.internal)
        frame_steps(ax, logs, _label(metric) + (", change" if change else ""))
        if change:
            ax.axhline(0, color="0.6", linewidth=0.7, zorder=0)
        if place + columns < len(metrics):
            ax.set_xlabel("")
        ax.tick_params(labelbottom=place + columns >= len(metrics))
    figure_legend(figure, _run_handles(logs))
    complete_axes(axes, _caption(logs, series, smooth, change))
    return axes


def _caption(logs: Sequence[TrainingLog], series: dict[str, list[Series]], smooth: int | None, change: bool) -> str:
    drawn = [one for every in series.values() for one in every]
    windows = [window_of(one, smooth) for one in drawn if one.dense]
    of_rows = any(not one.dense for metric, every in series.items() if metric not in OF_ANSWERS for one in every)
    watched = " / ".join(dict.fromkeys(f"layer {log.watched}" for log in logs))
    return describe_logs(
        logs,
        f"change since step {drawn[0].steps[0]}" if change else "",
        f"similarity and KL of {watched}" if {"similarity/above", "kl/above"} & series.keys() else "",
        "final policy under the model's final norm" if {"policy_entropy", "perplexity"} & series.keys() else "",
        smoothing_text(windows) if windows else "",
        "thin: snapshots of the monitor" if len(windows) < len(drawn) else "",
        MONITOR_MEAN if of_rows else "",
        interval_text(drawn, "paired problems" if change else "problems"),
    )


def _label(metric: str) -> str:
    distilled = metric.removeprefix(DISTILL)
    return f"JS of layer {distilled} to the final policy [bits]" if distilled != metric else LABELS.get(metric, plain(metric))


def _run_handles(logs: Sequence[TrainingLog]) -> list[Artist]:
    """A legend entry per run, with its internal phases; those of a single run have entries of their own."""
    handles: list[Artist] = []
    for number, (log, name) in enumerate(zip(logs, numbered([log.name for log in logs]), strict=True)):
        style = line_style(number)
        phases = "" if len(logs) == 1 else "; ".join(map(phase_text, log.internal))
        label = f"{name} (internal: {phases})" if phases else name
        handles.append(
            Line2D([], [], color=style.color, linestyle=style.linestyle, marker=style.marker, linewidth=2, markersize=3.5, label=label)
        )
    return handles + (phase_patches(logs[0].internal) if len(logs) == 1 else [])


def _drawn(log: TrainingLog, metric: str, change: bool) -> Series:
    """A series in the unit of its panel: of perplexity the logarithm, which is a mean over tokens."""
    if change:
        name = ("log_perplexity" if metric == "perplexity" else metric) + CHANGE
        if name not in log.monitor.columns:
            raise SelectionError(
                f"the training {log.name} has no change of {metric!r} since its start: only means of its monitor have one, with an interval"
            )
        return column(log.monitor, name)
    series = series_of(log, metric)
    if metric != "perplexity":
        return series
    return replace(series, values=np.log(series.values), low=np.log(series.low), high=np.log(series.high))
