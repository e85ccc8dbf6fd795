"""Heat maps over a monitor's snapshots: layer × snapshot, with the phases of training and the layer that is trained in each."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import QuadMesh
from matplotlib.patches import Rectangle

from layerlens.plots.kit.axes import set_title
from layerlens.plots.kit.caption import describe_logs
from layerlens.plots.kit.figure import axes_size
from layerlens.plots.kit.heat_map import heat_map
from layerlens.plots.kit.layer_axis import number_axis
from layerlens.plots.kit.scale import Scale
from layerlens.plots.kit.steps import PHASE_END, phase_text
from layerlens.results.training_log import Phase, TrainingLog


def snapshot_heat_map(
    log: TrainingLog, steps: np.ndarray, layers: list[int], values: np.ndarray, scale: Scale, label: str, *, title: str = "", **options: Any
) -> Axes:
    """Draws layer × snapshot, numbered by layer and step, with the phases of training.

    Args:
        log: the training, whose phases are marked.
        steps: the optimizer step of each column.
        layers: the number of each row, in a row.
        values: layers × snapshots.
        title: of the axes; "" for none.
        scale, label, options: as in `heat_map`.
    """

    def number(ax: Axes, _: QuadMesh) -> None:
        width, height = axes_size(ax)
        number_axis(ax.yaxis, layers, height, apart=0.13)
        number_axis(ax.xaxis, steps.tolist(), width, apart=0.3, rows=True, label="optimizer step")
        _mark_phases(ax, log.internal, steps, layers)
        if title:
            title_above_phases(ax, log, title)

    edges = np.arange(layers[0], layers[-1] + 2) - 0.5
    return heat_map(values, scale, label, y=edges, after_layout=number, **options)


def title_above_phases(ax: Axes, log: TrainingLog, title: str) -> None:
    """The title of a heat map, above the names of the phases if there are any."""
    set_title(ax, title, pad=16.0 if log.internal else 5.0)


def single_heat_map(
    log: TrainingLog, steps: np.ndarray, layers: list[int], values: np.ndarray, scale: Scale, label: str, shows: Sequence[str],
    ax: Axes | None,
) -> Axes:  # fmt: skip
    """Draws `snapshot_heat_map` into a figure of its own or the caller's axes, with title and caption; `shows` in the latter."""
    size = float(np.clip(2.6 + 0.17 * len(steps), 4.4, 8)), float(np.clip(1.7 + 0.13 * len(layers), 3, 7))
    text = describe_logs([log], "one column per snapshot", *shows)
    return snapshot_heat_map(log, steps, layers, values, scale, label, ax=ax, size=size, title=log.name, caption=text)


def marks_text(log: TrainingLog, steps: np.ndarray, layers: Sequence[int]) -> list[str]:
    """What a caption says of the marks of the phases in `snapshot_heat_map`, as far as there are any."""
    return [outlined_text(log, steps, layers), _phase_ends_text(log, steps)]


def outlined_text(log: TrainingLog, steps: np.ndarray, layers: Sequence[int]) -> str:
    """What a caption says of the outline around the trained layer; "" if no phase's layer is among the rows."""
    outlined = any(layer in layers and ((steps >= first) & (steps <= last)).any() for first, last, layer in log.internal)
    return "outlined: the layer in training" if outlined else ""


def _phase_ends_text(log: TrainingLog, steps: np.ndarray) -> str:
    ends = any(0 < (steps <= last).sum() < len(steps) for _, last, _ in log.internal)
    return f"dashed: end of the internal phase ({'; '.join(map(phase_text, log.internal))})" if ends else ""


def _mark_phases(ax: Axes, phases: Sequence[Phase], steps: np.ndarray, layers: Sequence[int]) -> None:
    """A line between the snapshots before and after each phase's end, phases named above, and the trained layer outlined."""
    column = axes_size(ax)[0] / len(steps)
    parts = [(np.flatnonzero((steps >= first) & (steps <= last)), layer, last) for first, last, layer in phases]
    for inside, layer, _ in parts:
        if len(inside) and layer in layers:
            for color, width in (("white", 2.2), ("black", 1.1)):
                corner = inside[0] - 0.5, layer - 0.5
                ax.add_patch(Rectangle(corner, len(inside), 1, fill=False, edgecolor=color, linewidth=width, zorder=3))
        if len(inside) and len(inside) * column > 0.75:
            _name_above(ax, float(inside.mean()), f"internal (layer {layer})" if len(inside) * column > 1.0 else f"layer {layer}")
    for _, _, last in parts:
        edge = int((steps <= last).sum())
        if 0 < edge < len(steps):
            ax.axvline(edge - 0.5, color="white", linewidth=2.2)
            ax.axvline(edge - 0.5, color="black", linewidth=1.1, linestyle=(0, (3, 1.5))).set_gid(PHASE_END)
    rest = np.flatnonzero(steps > phases[-1][1]) if phases else np.array([])
    if len(rest) and len(rest) * column > 0.8:
        _name_above(ax, float(rest.mean()), "final policy")


def _name_above(ax: Axes, x: float, text: str) -> None:
    ax.text(x, 1.012, text, transform=ax.get_xaxis_transform(), ha="center", va="bottom", fontsize=6.5, color="0.25")
