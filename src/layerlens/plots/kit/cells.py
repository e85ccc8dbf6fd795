"""Coloured cells, and the colour bar that says what the colours mean."""

from __future__ import annotations

from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import PolyCollection, QuadMesh
from matplotlib.colorbar import Colorbar
from matplotlib.colors import LogNorm, Normalize
from matplotlib.ticker import FuncFormatter, NullFormatter

from layerlens.plots.kit.labels import families, power, wrapped
from layerlens.plots.kit.scale import Scale

UNSURE = "unsure"
"""The gid of the dots in cells whose interval contains zero."""

MANY_CELLS = 20_000
"""From here on the cells become one image inside vector files."""


def draw_cells(ax: Axes, values: np.ndarray, norm: Normalize, scale: Scale, *, y: np.ndarray | None = None) -> QuadMesh:
    """A cell per value, row 0 at the bottom, column i around x = i; row i around y = i, or between y[i] and y[i + 1].

    Values that are not finite are left open, on a hatched ground.
    """
    rows, columns = values.shape
    x = np.arange(columns + 1) - 0.5
    y = np.arange(rows + 1) - 0.5 if y is None else y
    shown = np.ma.masked_invalid(values)
    fine: dict[str, Any] = {"rasterized": values.size > MANY_CELLS, "linewidth": 0, "antialiased": False}
    cells = ax.pcolormesh(x, y, shown, cmap=scale.cmap, norm=norm, **fine)
    if np.ma.is_masked(shown):
        ax.patch.set(facecolor="0.95", edgecolor="0.75", hatch="////", linewidth=0)
    ax.set(xlim=(x[0], x[-1]), ylim=(y[0], y[-1]))
    ax.tick_params(length=2)
    for spine in ax.spines.values():
        spine.set_visible(True)
        spine.set_linewidth(0.5)
    return cells


def dot_cells(ax: Axes, unsure: np.ndarray, *, bottom: int = 0) -> None:
    """A dot in each cell of which `unsure` is true; row 0 lies at y = `bottom`."""
    rows, columns = np.nonzero(unsure)
    if len(rows):
        ax.plot(columns, rows + bottom, linestyle="", marker=".", markersize=2.5, color="0.2", gid=UNSURE)


def hatched_text(values: np.ndarray) -> str:
    """What a caption says of the cells that `draw_cells` leaves open; "" if there are none."""
    return "" if np.isfinite(values).all() else "hatched: no finite value"


def color_bar(axes: Axes | np.ndarray, cells: QuadMesh | PolyCollection, values: np.ndarray, label: str) -> Colorbar:
    """A colour bar with name and unit, for one axes or an array of them; pointed at an end that values lie beyond."""
    several = [axes] if isinstance(axes, Axes) else list(axes.flat)
    figure = several[0].get_figure(root=False)
    assert figure is not None
    finite = values[np.isfinite(values)]
    low, high = cells.get_clim()
    slack = 1e-5 * (high - low)  # a cosine of 1.0000001 is no reason to point the bar
    below, above = bool((finite < low - slack).any()), bool((finite > high + slack).any())
    extend = ("both" if above else "min") if below else "max" if above else "neither"
    share = 0.05 if len(several) == 1 else 0.03
    boxes = [ax.get_window_extent() for ax in several]
    tall = (max(box.y1 for box in boxes) - min(box.y0 for box in boxes)) / figure.dpi
    thick = min(0.13, 0.9 * share * (max(box.x1 for box in boxes) - min(box.x0 for box in boxes)) / figure.dpi)
    # a single axes, not a list of one: its colour bar then moves with it in any layout
    around = axes if isinstance(axes, Axes) else several
    bar = figure.colorbar(cells, ax=around, extend=extend, extendfrac=0.02, pad=0.02, fraction=share, aspect=max(15, tall / thick))
    if isinstance(cells.norm, LogNorm):
        bar.formatter = FuncFormatter(lambda value, _: power(value))
        bar.minorformatter = NullFormatter()
    bar.ax.set_ylabel(wrapped(label, tall, 8.0), fontsize=8, fontfamily=families())
    bar.ax.tick_params(labelsize=7)
    bar.outline.set_linewidth(0.5)
    return bar


def write_values(ax: Axes, cells: QuadMesh, values: np.ndarray, digits: int) -> None:
    """Each finite value in its cell, dark on light and light on dark."""
    cmap = cells.get_cmap()
    for (row, column), value in np.ndenumerate(values):
        if np.isfinite(value):
            red, green, blue, _ = cmap(cells.norm(value))
            light = 0.299 * red + 0.587 * green + 0.114 * blue > 0.5
            font: dict[str, Any] = {"fontsize": 5.5, "color": "black" if light else "white", "in_layout": False}
            ax.text(column, row, f"{value:z.{digits}f}", ha="center", va="center", **font)
