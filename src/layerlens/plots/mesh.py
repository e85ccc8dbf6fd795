"""Cells coloured by a metric, and the colour bar that says what the colours mean."""

from __future__ import annotations

from typing import Any

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.collections import QuadMesh
from matplotlib.colorbar import Colorbar
from matplotlib.colors import LogNorm, Normalize
from matplotlib.ticker import FuncFormatter, NullFormatter

from layerlens.errors import SelectionError
from layerlens.plots.data import Limits
from layerlens.plots.labels import families, power, wrapped
from layerlens.plots.style import Scale

MANY_CELLS = 20_000


def draw_mesh(
    ax: Axes, values: np.ndarray, norm: Normalize, scale: Scale, *, x: np.ndarray | None = None, y: np.ndarray | None = None
) -> QuadMesh:
    """A cell per value, row 0 at the bottom; edges at `x` and `y`, by default half a unit around 0, 1, 2...

    What is missing (NaN) is left open, on a hatched ground. Dense meshes become an image inside vector files.
    """
    rows, columns = values.shape
    x = np.arange(columns + 1) - 0.5 if x is None else x
    y = np.arange(rows + 1) - 0.5 if y is None else y
    shown = np.ma.masked_invalid(values)
    fine: dict[str, Any] = {"rasterized": values.size > MANY_CELLS, "linewidth": 0, "antialiased": False}
    mesh = ax.pcolormesh(x, y, shown, cmap=scale.cmap, norm=norm, **fine)
    if np.ma.is_masked(shown):
        ax.patch.set(facecolor="0.95", edgecolor="0.75", hatch="////", linewidth=0)
    ax.set(xlim=(x[0], x[-1]), ylim=(y[0], y[-1]))
    ax.tick_params(length=2)
    for spine in ax.spines.values():
        spine.set_visible(True)
        spine.set_linewidth(0.5)
    return mesh


def hatched(values: np.ndarray) -> str:
    """What a caption says of cells that `draw_mesh` left open; nothing where there are none."""
    return "" if np.isfinite(values).all() else "hatched: no finite value"


def normalize(scale: Scale, values: np.ndarray, limits: Limits = None, *, tail: bool = False) -> Normalize:
    """Values to the ends of the colour map: at `limits`, or where the values end."""
    if limits is not None and not limits[0] < limits[1]:
        raise SelectionError(f"limits must be (low, high) with low under high, got {limits}")
    low, high = scale.limits(values, tail=tail) if limits is None else limits
    return LogNorm(max(low, 1e-12), max(high, low * 1.01)) if scale.log else Normalize(low, high)


def color_bar(axes: Axes | np.ndarray, mesh: QuadMesh, values: np.ndarray, label: str) -> Colorbar:
    """A colour bar with its unit, for one axes or an array of them; pointed at an end that values lie beyond."""
    several = [axes] if isinstance(axes, Axes) else list(axes.flat)
    figure = several[0].get_figure(root=False)
    assert figure is not None
    finite = values[np.isfinite(values)]
    low, high = mesh.get_clim()
    slack = 1e-5 * (high - low)  # a cosine of 1.0000001 is no reason to point the bar
    below, above = bool((finite < low - slack).any()), bool((finite > high + slack).any())
    extend = ("both" if above else "min") if below else "max" if above else "neither"
    share = 0.05 if len(several) == 1 else 0.03
    boxes = [ax.get_window_extent() for ax in several]
    tall = (max(box.y1 for box in boxes) - min(box.y0 for box in boxes)) / figure.dpi
    thick = min(0.13, 0.9 * share * (max(box.x1 for box in boxes) - min(box.x0 for box in boxes)) / figure.dpi)
    # a single axes, not a list of one: its colour bar then moves with it in any layout
    around = axes if isinstance(axes, Axes) else several
    bar = figure.colorbar(mesh, ax=around, extend=extend, extendfrac=0.02, pad=0.02, fraction=share, aspect=max(15, tall / thick))
    if isinstance(mesh.norm, LogNorm):
        bar.formatter = FuncFormatter(lambda value, _: power(value))
        bar.minorformatter = NullFormatter()
    bar.ax.set_ylabel(wrapped(label, tall, 8.0), fontsize=8, fontfamily=families())
    bar.ax.tick_params(labelsize=7)
    bar.outline.set_linewidth(0.5)
    return bar


def write_values(ax: Axes, mesh: QuadMesh, values: np.ndarray, digits: int) -> None:
    """Each cell's number in it, dark on light and light on dark."""
    cmap = colormaps[mesh.get_cmap().name]
    for (row, column), value in np.ndenumerate(values):
        if np.isfinite(value):
            red, green, blue, _ = cmap(mesh.norm(value))
            light = 0.299 * red + 0.587 * green + 0.114 * blue > 0.5
            text = f"{value:z.{digits}f}"
            look: dict[str, Any] = {"fontsize": 5.5, "color": "black" if light else "white", "in_layout": False}
            ax.text(column, row, text, ha="center", va="center", **look)
