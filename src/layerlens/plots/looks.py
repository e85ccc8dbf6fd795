"""Heat maps over a monitor's looks: layer × look, with the phases of training and the layer that is trained in each."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.patches import Rectangle

from layerlens.errors import SelectionError
from layerlens.plots.axis import number_layers
from layerlens.plots.canvas import axes_size, settle
from layerlens.plots.mesh import color_bar, draw_mesh, normalize
from layerlens.plots.steps import SWITCH
from layerlens.plots.style import Scale
from layerlens.results.training_log import Phase, TrainingLog


def by_layer(log: TrainingLog, prefix: str) -> tuple[np.ndarray, list[int], np.ndarray]:
    """Steps of the looks, the layers from the first to the last that have such a column, and their values, layer × look."""
    if log.monitor.empty:
        raise SelectionError(f"the training {log.name} has no monitor: train with monitor_every")
    names = [name for name in log.monitor.columns if name.startswith(prefix) and name.removeprefix(prefix).isdigit()]
    if not names:
        watched = f": it watched layer {log.watched}, which has none above" if prefix.endswith("to_") else ""
        raise SelectionError(f"the monitor of {log.name} holds no {prefix}*{watched}")
    numbers = [int(name.removeprefix(prefix)) for name in names]
    layers = list(range(min(numbers), max(numbers) + 1))
    values = log.monitor.reindex(columns=[f"{prefix}{layer}" for layer in layers]).to_numpy(np.float64).T
    return log.monitor["step"].to_numpy(np.int64), layers, values


def draw_looks(ax: Axes, log: TrainingLog, steps: np.ndarray, rows: list[int], values: np.ndarray, scale: Scale, label: str) -> None:
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
