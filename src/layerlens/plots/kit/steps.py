"""Curves over optimizer steps, with the internal phases of training behind them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator

from layerlens.metrics.curves import phase_numbers, smoothed, smoothing_window
from layerlens.plots.kit.axes import open_frame
from layerlens.plots.kit.caption import NO_INTERVAL
from layerlens.plots.kit.curves import draw_band
from layerlens.plots.kit.labels import families
from layerlens.plots.kit.series import Series
from layerlens.plots.kit.style import PHASE_TINTS, STYLE, LineStyle, line_style
from layerlens.results.training_log import Phase, TrainingLog

TINTS = (PHASE_TINTS["exploration"], PHASE_TINTS["convergence"])
"""Of the internal phases, in turn."""

PHASE_END = "phase end"
"""The gid of a line where an internal phase ends."""


def draw_series(ax: Axes, series: Series, style: LineStyle, label: str, smooth: int | None = 1, phases: Sequence[Phase] = ()) -> None:
    """A thin line from snapshot to snapshot with its interval as a band, or a thick smoothed line over the faint one as logged.

    Args:
        smooth: entries of the centred mean of a logged series, None for a number that fits its length; 1 draws it as logged.
        phases: internal phases, across whose ends nothing is smoothed.
    """
    values = np.where(np.isfinite(series.values), series.values, np.nan)
    every = max(1, round(len(series.steps) / (8 if series.dense else 24)))
    window = window_of(series, smooth)
    if series.dense and window > 1:
        ax.plot(series.steps, values, color=style.color, linewidth=0.7, alpha=0.35, label="_as logged")
        values = smoothed(values, window, phase_numbers(series.steps, [last for _, last, _ in phases]))
    width, size = (1.9, 4.5) if series.dense else (1.4, 3.5)
    draw_band(ax, series.steps, series.low, series.high, style.color)
    drawn: dict[str, Any] = {"color": style.color, "linestyle": style.linestyle, "marker": style.marker}
    ax.plot(series.steps, values, linewidth=width, markersize=size, markevery=every, label=label, **drawn)


def window_of(series: Series, smooth: int | None) -> int:
    """Entries of the centred mean: as asked for, by default as many as fit the length of the series."""
    return smoothing_window(len(series.steps)) if smooth is None else smooth


def smoothing_text(windows: Sequence[int]) -> str:
    """What a caption says of the logged series, smoothed over these windows."""
    if set(windows) == {1}:
        return "thick: the trainer's log, not smoothed"
    lengths = " / ".join(str(window) for window in dict.fromkeys(windows))
    return f"thick: the trainer's log, centred mean of {lengths} entries within a phase (faint: as logged)"


def interval_text(series: Sequence[Series], over: str = "problems") -> str:
    """What a caption says of the bands."""
    return f"bands: 95% bootstrap interval over {over}" if any(one.has_interval for one in series) else NO_INTERVAL


def frame_steps(ax: Axes, logs: Sequence[TrainingLog], label: str) -> None:
    """Phases, frame and axes around curves over optimizer steps; `label` names the y axis."""
    mark_phases(ax, logs)
    open_frame(ax)
    ax.set_ylabel(label)
    ax.set_xlabel("optimizer step")
    ax.xaxis.set_major_locator(MaxNLocator(6, integer=True, steps=[1, 2, 5, 10]))


def mark_phases(ax: Axes, logs: Sequence[TrainingLog]) -> None:
    """Internal phases shaded, each phase's end a line in the style of its run; phases that several runs share are shaded once."""
    last = max(1, *(int(frame["step"].max()) for log in logs for frame in (log.monitor, log.log) if len(frame)))
    spans = {span: number for log in logs for number, span in enumerate(_spans(log.internal))}
    alone = len(logs) == 1
    for (begin, end), number in spans.items():
        ax.axvspan(begin, min(end, last), facecolor=TINTS[number % 2], alpha=1.0 if alone else 0.55, zorder=-2, linewidth=0)
    for number, log in enumerate(logs):
        style = LineStyle("0.25", "", (0, (4, 2))) if alone else line_style(number)
        for _, end in _spans(log.internal):
            if end < last:
                ax.axvline(end, linewidth=1.0, zorder=0.5, color=style.color, linestyle=style.linestyle, gid=PHASE_END)
    ax.set_xlim(-0.015 * last, 1.015 * last)


def _spans(phases: Sequence[Phase]) -> list[tuple[float, float]]:
    """From the snapshot before a phase's first step to half a step after its last, so that a snapshot at the end lies inside."""
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


def figure_legend(figure: Figure, handles: Sequence[Artist]) -> None:
    """A legend above all axes, in as many columns as fit."""
    size = STYLE["legend.fontsize"]
    widths = [0.52 * size * len(str(handle.get_label())) + 6 * size for handle in handles]
    room = figure.get_figwidth() * 72 - 10
    columns = len(handles) if sum(widths) < room else max(1, int(room // max(widths)))
    font = {"family": families(), "size": size}
    figure.legend(handles=list(handles), loc="outside upper center", ncols=columns, handlelength=3, prop=font)
