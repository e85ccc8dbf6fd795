"""Curves over optimizer steps: one number of a training run, its internal phases, and the legend that names both."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator

from layerlens.errors import SelectionError
from layerlens.plots.axis import draw_band
from layerlens.plots.labels import families, numbered, plain
from layerlens.plots.style import PHASE_TINTS, STYLE, Look, look
from layerlens.results.training_log import HIGH, LOW, Phase, TrainingLog

TINTS = (PHASE_TINTS["exploration"], PHASE_TINTS["convergence"])
SMOOTHED_SHARE = 20
"""Smoothing runs over the entries of a series divided by this, at least 5 entries where there are 20."""

MEAN = "mean of per-sample means, response rows"
"""How the monitor averages over its probe."""

SWITCH = "switch"
"""The gid of a line where a phase ends."""


@dataclass(frozen=True)
class Series:
    """One number over the optimizer steps; `dense` where it comes from the trainer's log, not from looks of the monitor.

    `low` and `high` are the ends of its interval, NaN where there is none.
    """

    steps: np.ndarray
    values: np.ndarray
    low: np.ndarray
    high: np.ndarray
    dense: bool

    @property
    def has_interval(self) -> bool:
        return bool((np.isfinite(self.low) & np.isfinite(self.high)).any())


def column(frame: pd.DataFrame, name: str, dense: bool = False) -> Series:
    """A column of the monitor or of the log, where it has values."""
    ends = frame.reindex(columns=["step", name, name + LOW, name + HIGH]).dropna(subset=[name])
    values, low, high = (ends[key].to_numpy(np.float64) for key in (name, name + LOW, name + HIGH))
    return Series(ends["step"].to_numpy(np.int64), values, low, high, dense)


def series_of(log: TrainingLog, metric: str) -> Series:
    """The column of that name, of the monitor or else of the log. Raises SelectionError where neither has one."""
    for frame, dense in ((log.monitor, False), (log.log, True)):
        if metric in frame.columns and metric != "step" and frame[metric].notna().any():
            return column(frame, metric, dense)
    there = [
        name
        for frame in (log.monitor, log.log)
        for name in frame.columns
        if name != "step" and not name[-1].isdigit() and not name.endswith((LOW, HIGH))
    ]
    lacking = "" if len(log.monitor) else "; it has no monitor: train with monitor_every"
    lacking = lacking if len(log.log) else "; it has no log yet: wait for its first checkpoint"
    if metric.startswith("stability/") and len(log.monitor):
        lacking = "; train with monitor_repeats of 2 or more"
    raise SelectionError(
        f"the training {log.name} has no {metric!r}{lacking}. It has {', '.join(there[:20])}{', ...' if len(there) > 20 else ''}"
    )


def draw_series(ax: Axes, one: Series, style: Look, label: str, window: int, phases: Sequence[Phase] = ()) -> None:
    """A thin line from look to look with its interval as a band, or a thick smoothed one over the faint one as logged."""
    values = np.where(np.isfinite(one.values), one.values, np.nan)
    every = max(1, round(len(one.steps) / (8 if one.dense else 24)))
    if one.dense and window > 1:
        ax.plot(one.steps, values, color=style.color, linewidth=0.7, alpha=0.35, label="_as logged")
        values = smoothed(one.steps, values, window, phases)
    width, size = (1.9, 4.5) if one.dense else (1.4, 3.5)
    draw_band(ax, one.steps, one.low, one.high, style.color)
    drawn: dict[str, Any] = {"color": style.color, "linestyle": style.linestyle, "marker": style.marker}
    ax.plot(one.steps, values, linewidth=width, markersize=size, markevery=every, label=label, **drawn)


def smoothing_window(one: Series, smooth: int | None) -> int:
    """Log entries of the centred mean: as asked, else by how many there are."""
    if smooth is not None:
        return smooth
    entries = len(one.steps)
    return 1 if entries < 20 else max(5, entries // SMOOTHED_SHARE // 2 * 2 + 1)


def smoothed(steps: np.ndarray, values: np.ndarray, window: int, phases: Sequence[Phase] = ()) -> np.ndarray:
    """The centred mean over `window` entries, fewer at the ends of a phase: nothing leaks from one phase into the next."""
    phase = np.searchsorted([last for _, last, _ in phases], steps)
    frame = pd.DataFrame({"phase": phase, "value": values})
    means: np.ndarray = (
        frame.groupby("phase")["value"].transform(lambda part: part.rolling(window, center=True, min_periods=1).mean()).to_numpy()
    )
    return means


def smoothing_text(windows: list[int]) -> str:
    """What a caption says of it."""
    if set(windows) == {1}:
        return "thick: the trainer's log, not smoothed"
    lengths = " / ".join(str(window) for window in dict.fromkeys(windows))
    return f"thick: the trainer's log, centred mean of {lengths} entries within a phase (faint: as logged)"


def step_axis(ax: Axes) -> None:
    """Whole steps along x."""
    ax.set_xlabel("optimizer step")
    ax.xaxis.set_major_locator(MaxNLocator(6, integer=True, steps=[1, 2, 5, 10]))


def mark_phases(ax: Axes, logs: Sequence[TrainingLog]) -> None:
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


def phase_text(phase: Phase) -> str:
    """A phase in words."""
    return f"layer {phase[2]}, steps {phase[0]} to {phase[1]}"


def phase_patches(phases: Sequence[Phase]) -> list[Artist]:
    """Legend entries of the shaded phases."""
    return [
        Patch(facecolor=TINTS[number % 2], edgecolor="0.25", linestyle=(0, (4, 2)), linewidth=0.8, label=f"internal: {phase_text(phase)}")
        for number, phase in enumerate(phases)
    ]


def legend_above(ax: Axes, logs: Sequence[TrainingLog]) -> None:
    """Over the whole figure: each run's line, with its internal phases."""
    figure = ax.get_figure(root=True)
    assert figure is not None
    handles: list[Artist] = []
    names = numbered([log.name for log in logs])
    for number, (log, name) in enumerate(zip(logs, names, strict=True)):
        style = look(number)
        phases = "" if len(logs) == 1 else "; ".join(map(phase_text, log.internal))
        label = f"{name} (internal: {phases})" if phases else name
        handles.append(
            Line2D([], [], color=style.color, linestyle=style.linestyle, marker=style.marker, linewidth=2, markersize=3.5, label=label)
        )
    handles += phase_patches(logs[0].internal) if len(logs) == 1 else []
    figure_legend(figure, handles)


def figure_legend(figure: Figure, handles: Sequence[Artist]) -> None:
    """Above all axes, in as many columns as fit."""
    size = STYLE["legend.fontsize"]
    widths = [0.52 * size * len(str(handle.get_label())) + 6 * size for handle in handles]
    room = figure.get_figwidth() * 72 - 10
    columns = len(handles) if sum(widths) < room else max(1, int(room // max(widths)))
    font = {"family": families(), "size": size}
    figure.legend(handles=list(handles), loc="outside upper center", ncols=columns, handlelength=3, prop=font)


def describe_logs(logs: Sequence[TrainingLog], *shows: str) -> str:
    """A caption: what is shown, of which models, under which norm, on how many probe problems."""
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


def interval_text(series: Sequence[Series]) -> str:
    """What a caption says of the bands."""
    return "bands: 95% bootstrap interval over problems" if any(one.has_interval for one in series) else "no interval"
