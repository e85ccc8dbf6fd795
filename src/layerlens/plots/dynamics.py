"""Figures of a training run: what it earns, and what happens inside the model meanwhile."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch, Rectangle
from matplotlib.ticker import MaxNLocator

from layerlens.errors import SelectionError
from layerlens.plots.axis import dress, number_layers, open_frame, set_title
from layerlens.plots.canvas import axes_size, new_figure, settle
from layerlens.plots.caption import add_caption, finish
from layerlens.plots.curves import _log_axis
from layerlens.plots.labels import families, metric_label, plain
from layerlens.plots.mesh import color_bar, draw_mesh, hatched, normalize
from layerlens.plots.passes import _names
from layerlens.plots.style import PHASE_TINTS, SCALES, STYLE, Look, Scale, look, styled
from layerlens.results.training import Phase, TrainingLog

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

TINTS = (PHASE_TINTS["exploration"], PHASE_TINTS["convergence"])
SMOOTHED_SHARE = 20
"""Smoothing runs over a run's log divided by this, at least 5 entries where there are 20."""

MEAN = "mean of per-sample means, response rows"
"""How the monitor averages over its probe."""

SWITCH = "switch"
"""The gid of a line where a phase ends."""


@dataclass(frozen=True)
class Series:
    """One number over the optimizer steps; `dense` where it comes from the trainer's log, not from looks of the monitor."""

    steps: np.ndarray
    values: np.ndarray
    dense: bool


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
    steps, layers, values = _by_layer(log, "entropy/layer_")
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
    steps, layers, values = _by_layer(log, "drift/layer_")
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
        steps, above, values = _by_layer(log, f"{prefix}to_")
        what = f"mean of layers {above[0]} to {above[-1]}" if len(above) > 1 else f"layer {above[0]}"
        curves = {what: log.monitor[f"{prefix}above"].to_numpy(np.float64)}
        curves |= {f"layer {above[0]}, the next": values[0], f"layer {above[-1]}, the last": values[-1]}
        for number, (name, curve) in enumerate(curves.items()):
            if number == 0 or len(above) > 1:
                _line(left, Series(steps, curve, dense=False), look(number), name, 1)
        _mark_phases(left, [log])
        open_frame(left)
        _step_axis(left)
        left.set_ylabel(label)
        _cells(right, log, steps, above, values, scale, label)
    axes[1, 0].set_ylim(bottom=min(0.0, axes[1, 0].get_ylim()[0]))
    handles = [*axes[0, 0].get_legend_handles_labels()[0], *_phase_patches(log.internal)]
    _figure_legend(figure, handles)
    shows = f"layer {log.watched} against the layers above it"
    add_caption(figure, _caption([log], shows, hatched(values), MEAN, "no interval"))
    settle(axes[0, 0])
    for row, title in enumerate(("similarity of the residual stream (resid_post)", "KL to the policies above (resid_post)")):
        set_title(axes[row, 0], log.name if row == 0 else "", pad=5.0)
        set_title(axes[row, 1], title, pad=16.0 if log.internal else 5.0)
    for ax in axes.flat:
        dress(ax)
    return axes


# ---- panels over steps


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
    series = {metric: [_series(log, metric) for log in logs] for metric in metrics}
    windows = [_window(log, smooth) for log in logs]
    columns = min(len(metrics), columns or (3 if len(metrics) > 4 else 2))
    rows = ceil(len(metrics) / columns)
    figure = new_figure(max(4.6, 3.3 * columns), 1.0 + 2.0 * rows + 0.1 * len(logs))
    grid = figure.subplots(rows, columns, sharex=True, squeeze=False)
    for ax in list(grid.flat)[len(metrics) :]:
        ax.remove()
    axes: np.ndarray = np.array(list(grid.flat)[: len(metrics)], dtype=object)
    for place, (ax, metric) in enumerate(zip(axes, metrics, strict=True)):
        for number, (log, one, window) in enumerate(zip(logs, series[metric], windows, strict=True)):
            _line(ax, one, look(number), log.name, window, log.internal)
        _mark_phases(ax, logs)
        open_frame(ax)
        ax.set_ylabel(LABELS.get(metric, plain(metric)))
        if metric == "perplexity" and _spread(series[metric]) > 10:
            _log_axis(ax)
        _step_axis(ax)
        if place + columns < len(metrics):
            ax.set_xlabel("")
        ax.tick_params(labelbottom=place + columns >= len(metrics))
    _legend_above(axes[0], logs)
    dense = [one for metric in metrics for one in series[metric] if one.dense]
    looked = any(not one.dense for metric in metrics for one in series[metric])
    shows = [
        "full policy under its own final norm" if {"policy_entropy", "perplexity"} & set(metrics) else "",
        _smoothing(windows) if dense else "",
        "thin: looks of the monitor" if looked else "",
        "no interval",
    ]
    add_caption(figure, _caption(logs, *shows))
    settle(axes[0])
    for ax in axes:
        dress(ax)
    return axes


def _series(log: TrainingLog, metric: str) -> Series:
    """A column of the monitor or of the log, where it has values."""
    for frame, dense in ((log.monitor, False), (log.log, True)):
        if metric in frame.columns and metric != "step" and frame[metric].notna().any():
            known = frame[["step", metric]].dropna()
            return Series(known["step"].to_numpy(np.int64), known[metric].to_numpy(np.float64), dense)
    there = [name for frame in (log.monitor, log.log) for name in frame.columns if name != "step" and not name[-1].isdigit()]
    lacking = "" if len(log.monitor) else "; it has no monitor: train with monitor_steps"
    lacking = lacking if len(log.log) else "; it has no log yet: wait for its first checkpoint"
    if metric.startswith("stability/") and len(log.monitor):
        lacking = "; train with monitor_repeats of 2 or more"
    raise SelectionError(
        f"the training {log.name} has no {metric!r}{lacking}. It has {', '.join(there[:20])}{', ...' if len(there) > 20 else ''}"
    )


def _window(log: TrainingLog, smooth: int | None) -> int:
    if smooth is not None:
        return smooth
    entries = len(log.log)
    return 1 if entries < 20 else max(5, entries // SMOOTHED_SHARE // 2 * 2 + 1)


def _line(ax: Axes, one: Series, style: Look, label: str, window: int, phases: Sequence[Phase] = ()) -> None:
    values = np.where(np.isfinite(one.values), one.values, np.nan)
    every = max(1, round(len(one.steps) / (8 if one.dense else 24)))
    if one.dense and window > 1:
        ax.plot(one.steps, values, color=style.color, linewidth=0.7, alpha=0.35, label="_as logged")
        values = smoothed(one.steps, values, window, phases)
    width, size = (1.9, 4.5) if one.dense else (1.4, 3.5)
    drawn: dict[str, Any] = {"color": style.color, "linestyle": style.linestyle, "marker": style.marker}
    ax.plot(one.steps, values, linewidth=width, markersize=size, markevery=every, label=label, **drawn)


def smoothed(steps: np.ndarray, values: np.ndarray, window: int, phases: Sequence[Phase] = ()) -> np.ndarray:
    """The centred mean over `window` entries, fewer at the ends of a phase: nothing leaks from one phase into the next."""
    phase = np.searchsorted([last for _, last, _ in phases], steps)
    frame = pd.DataFrame({"phase": phase, "value": values})
    means: np.ndarray = (
        frame.groupby("phase")["value"].transform(lambda part: part.rolling(window, center=True, min_periods=1).mean()).to_numpy()
    )
    return means


def _smoothing(windows: list[int]) -> str:
    if set(windows) == {1}:
        return "thick: the trainer's log, not smoothed"
    lengths = " / ".join(str(window) for window in dict.fromkeys(windows))
    return f"thick: the trainer's log, centred mean of {lengths} entries within a phase (faint: as logged)"


def _spread(series: list[Series]) -> float:
    values = np.concatenate([one.values[np.isfinite(one.values)] for one in series])
    return float(values.max() / values.min()) if len(values) and values.min() > 0 else 1.0


def _step_axis(ax: Axes) -> None:
    ax.set_xlabel("optimizer step")
    ax.xaxis.set_major_locator(MaxNLocator(6, integer=True, steps=[1, 2, 5, 10]))


def _mark_phases(ax: Axes, logs: Sequence[TrainingLog]) -> None:
    """Internal phases shaded, each phase's end a line in its run's look; phases that several runs share are shaded once."""
    last = max(1, *(int(frame["step"].max()) for log in logs for frame in (log.monitor, log.log) if len(frame)))
    spans = {span: number for log in logs for number, span in enumerate(_spans(log.internal))}
    alone = len(logs) == 1
    for (begin, end), number in spans.items():
        ax.axvspan(begin, min(end, last), facecolor=TINTS[number % 2], alpha=1.0 if alone else 0.55, zorder=-2, linewidth=0)
    for number, log in enumerate(logs):
        style = Look("0.25", "", (0, (4, 2))) if alone else look(number)
        for _, end in _spans(log.internal):
            if end < last:
                ax.axvline(end, linewidth=1.0, zorder=0.5, color=style.color, linestyle=style.linestyle, gid=SWITCH)
    ax.set_xlim(-0.015 * last, 1.015 * last)


def _spans(phases: Sequence[Phase]) -> list[tuple[float, float]]:
    """From the look before a phase's first step to half a step after its last, so that a look at the end lies inside."""
    return [(0.0 if first == 1 else first - 0.5, last + 0.5) for first, last, _ in phases]


def _phase_text(phase: Phase) -> str:
    return f"layer {phase[2]}, steps {phase[0]} to {phase[1]}"


def _phase_patches(phases: Sequence[Phase]) -> list[Artist]:
    return [
        Patch(facecolor=TINTS[number % 2], edgecolor="0.25", linestyle=(0, (4, 2)), linewidth=0.8, label=f"internal: {_phase_text(phase)}")
        for number, phase in enumerate(phases)
    ]


def _legend_above(ax: Axes, logs: Sequence[TrainingLog]) -> None:
    """Over the whole figure: each run's line, with its internal phases."""
    figure = ax.get_figure(root=True)
    assert figure is not None
    handles: list[Artist] = []
    names = _names([log.name for log in logs])
    for number, (log, name) in enumerate(zip(logs, names, strict=True)):
        style = look(number)
        phases = "" if len(logs) == 1 else "; ".join(map(_phase_text, log.internal))
        label = f"{name} (internal: {phases})" if phases else name
        handles.append(
            Line2D([], [], color=style.color, linestyle=style.linestyle, marker=style.marker, linewidth=2, markersize=3.5, label=label)
        )
    handles += _phase_patches(logs[0].internal) if len(logs) == 1 else []
    _figure_legend(figure, handles)


def _figure_legend(figure: Figure, handles: Sequence[Artist]) -> None:
    """Above all axes, in as many columns as fit."""
    size = STYLE["legend.fontsize"]
    widths = [0.52 * size * len(str(handle.get_label())) + 6 * size for handle in handles]
    room = figure.get_figwidth() * 72 - 10
    columns = len(handles) if sum(widths) < room else max(1, int(room // max(widths)))
    font = {"family": families(), "size": size}
    figure.legend(handles=list(handles), loc="outside upper center", ncols=columns, handlelength=3, prop=font)


# ---- heat maps over looks


def _by_layer(log: TrainingLog, prefix: str) -> tuple[np.ndarray, list[int], np.ndarray]:
    """Steps of the looks, the layers from the first to the last that have such a column, and their values, layer × look."""
    if log.monitor.empty:
        raise SelectionError(f"the training {log.name} has no monitor: train with monitor_steps")
    names = [name for name in log.monitor.columns if name.startswith(prefix) and name.removeprefix(prefix).isdigit()]
    if not names:
        watched = f": it watched layer {log.watched}, which has none above" if prefix.endswith("to_") else ""
        raise SelectionError(f"the monitor of {log.name} holds no {prefix}*{watched}")
    numbers = [int(name.removeprefix(prefix)) for name in names]
    layers = list(range(min(numbers), max(numbers) + 1))
    values = log.monitor.reindex(columns=[f"{prefix}{layer}" for layer in layers]).to_numpy(np.float64).T
    return log.monitor["step"].to_numpy(np.int64), layers, values


def _heatmap(
    log: TrainingLog, steps: np.ndarray, rows: list[int], values: np.ndarray, scale: Scale, label: str, shows: str, ax: Axes | None,
    *, mean: bool = True,
) -> Axes:  # fmt: skip
    size = np.clip(2.6 + 0.17 * len(steps), 4.4, 8), np.clip(1.7 + 0.13 * len(rows), 3, 7)
    target = ax or new_figure(float(size[0]), float(size[1])).subplots()
    _cells(target, log, steps, rows, values, scale, label)
    set_title(target, log.name, pad=16.0 if log.internal else 5.0)
    outlined = "outlined: the layer in training" if any(isinstance(patch, Rectangle) for patch in target.patches) else ""
    missing = "" if "hatched" in shows else hatched(values)
    return finish(target, ax, _caption([log], "a column per look", shows, missing, outlined, MEAN if mean else "", "no interval"))


def _cells(ax: Axes, log: TrainingLog, steps: np.ndarray, rows: list[int], values: np.ndarray, scale: Scale, label: str) -> None:
    """Layer × look, numbered by layer and step, with the phases of training."""
    mesh = draw_mesh(ax, values, normalize(scale, values), scale, y=np.arange(rows[0], rows[-1] + 2) - 0.5)
    color_bar(ax, mesh, values, label)
    settle(ax)
    width, height = axes_size(ax)
    number_layers(ax.yaxis, rows, height, apart=0.13)
    number_layers(ax.xaxis, steps.tolist(), width, apart=0.3, rows=True)
    ax.set_xlabel("optimizer step")
    _mark_columns(ax, log.internal, steps, rows)


def _mark_columns(ax: Axes, phases: Sequence[Phase], steps: np.ndarray, rows: list[int]) -> None:
    """A line between the looks before and after each switch, phases named above, and the trained layer outlined."""
    column = axes_size(ax)[0] / len(steps)
    parts = [(np.flatnonzero((steps >= first) & (steps <= last)), layer, last) for first, last, layer in phases]
    for looks, layer, _ in parts:
        if len(looks) and layer in rows:
            for color, width in (("white", 2.2), ("black", 1.1)):
                corner = looks[0] - 0.5, layer - 0.5
                ax.add_patch(Rectangle(corner, len(looks), 1, fill=False, edgecolor=color, linewidth=width, zorder=3))
        if len(looks) and len(looks) * column > 0.75:
            _above(ax, float(looks.mean()), f"internal (layer {layer})" if len(looks) * column > 1.0 else f"layer {layer}")
    for _, _, last in parts:
        edge = int((steps <= last).sum())
        if 0 < edge < len(steps):
            ax.axvline(edge - 0.5, color="white", linewidth=2.2)
            ax.axvline(edge - 0.5, color="black", linewidth=1.1, linestyle=(0, (3, 1.5))).set_gid(SWITCH)
    rest = np.flatnonzero(steps > phases[-1][1]) if phases else np.array([])
    if len(rest) and len(rest) * column > 0.8:
        _above(ax, float(rest.mean()), "whole policy")


def _above(ax: Axes, x: float, text: str) -> None:
    ax.text(x, 1.012, text, transform=ax.get_xaxis_transform(), ha="center", va="bottom", fontsize=6.5, color="0.25")


def _caption(logs: Sequence[TrainingLog], *shows: str) -> str:
    """What is shown, of which models, under which norm, on how many probe problems."""
    models = ", ".join(dict.fromkeys(plain(log.model) for log in logs))
    norms = " / ".join(dict.fromkeys(log.norm for log in logs if log.norm))
    counts = " / ".join(dict.fromkeys(str(log.problems) for log in logs if log.problems))
    unknown = "phases not known: no log yet" if any(log.log.empty for log in logs) else ""
    parts = [
        models,
        f"internal policies under norm: {norms}" if norms else "",
        f"probe of {counts} problems" if counts else "",
        *shows,
        unknown,
    ]
    return "\u00a0· ".join(part for part in parts if part)
