"""Axes that count layers from 1, or measure depth as a share of the model."""

from __future__ import annotations

from collections.abc import Sequence
from math import ceil

import numpy as np
from matplotlib.axes import Axes
from matplotlib.axis import Axis

from layerlens.plots.kit.figure import axes_size
from layerlens.results import Run

_STEPS = (1, 2, 3, 4, 5, 6, 8, 10, 12, 16, 20, 25, 40, 50, 100)


def thinned(numbers: Sequence[int], gap: float) -> list[int]:
    """Those of the sorted numbers that differ by `gap` or more: the first, the last, and round ones if the numbers have no gap."""
    first, last = numbers[0], numbers[-1]
    if list(numbers) == list(range(first, last + 1)):
        step = next((s for s in _STEPS if s >= gap), ceil(gap))
        numbers = [first, *(p for p in range(first + 1, last) if p % step == 0), last]
        gap = min(gap, 0.6 * step)
    kept = [first]
    for number in numbers[1:-1]:
        if number - kept[-1] >= gap and last - number >= gap:
            kept.append(number)
    return kept if last == first else [*kept, last]


def number_axis(axis: Axis, numbers: Sequence[int], inches: float, *, apart: float, rows: bool = False, label: str = "layer") -> None:
    """Ticks at sorted numbers, such as layers, thinned until they are about `apart` inches or more apart.

    Args:
        inches: length of the axis.
        rows: a number lies at its index among the numbers, as rows of cells do, instead of at its value.
        label: of the axis.
    """
    numbers = list(numbers)
    spread = len(numbers) if rows else numbers[-1] - numbers[0] + 1
    gap = max(1.0, apart * spread / inches)
    regular = numbers == list(range(numbers[0], numbers[-1] + 1))
    if rows and not regular:
        places = thinned([2 * i for i in range(len(numbers))], 2 * gap)  # doubled: never taken for layer numbers
        axis.set_ticks([place // 2 for place in places], [str(numbers[place // 2]) for place in places])
    else:
        ticks = thinned(numbers, gap)
        axis.set_ticks([numbers.index(tick) for tick in ticks] if rows else ticks, [str(tick) for tick in ticks])
    axis.set_label_text(label)


def depth_axis(ax: Axes, runs: Sequence[Run], relative: bool) -> None:
    """The x axis of curves by layer: the layers of all runs, or relative depth."""
    if relative:
        ax.set_xlim(0, 1.02)
        ax.set_xticks(np.linspace(0, 1, 6 if axes_size(ax)[0] > 2 else 3))
        ax.set_xlabel("relative depth  l / L")
        return
    layers = sorted({layer for run in runs for layer in run.layers})
    margin = 0.5 + 0.01 * (layers[-1] - layers[0])
    ax.set_xlim(layers[0] - margin, layers[-1] + margin)
    number_axis(ax.xaxis, layers, axes_size(ax)[0], apart=0.22)


def depth(run: Run, relative: bool) -> np.ndarray:
    """Where the layers of a run lie on the axis of `depth_axis`."""
    layers = np.asarray(run.layers, float)
    return layers / run.n_layers if relative else layers


def compare_relative(runs: Sequence[Run], relative: bool | None) -> bool:
    """Whether to use relative depth: as asked for, by default if the models differ in depth."""
    return len({run.n_layers for run in runs}) > 1 if relative is None else relative
