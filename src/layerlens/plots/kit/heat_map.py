"""The one drawing under all heat maps: cells, colour bar, layout, ticks, caption, in this order."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import QuadMesh
from matplotlib.patches import Patch

from layerlens.plots.kit.caption import complete_axes
from layerlens.plots.kit.cells import color_bar, draw_cells
from layerlens.plots.kit.figure import new_figure, run_layout
from layerlens.plots.kit.scale import Limits, Scale, normalize
from layerlens.plots.kit.style import MODULE_NAMES, STYLE


def heat_map(
    values: np.ndarray,
    scale: Scale,
    label: str,
    *,
    ax: Axes | None,
    size: tuple[float, float] = (4.0, 3.0),
    limits: Limits = None,
    tail: bool = False,
    y: np.ndarray | None = None,
    classes: Sequence[Patch] = (),
    contours: Mapping[float, str] | None = None,
    before_layout: Callable[[Axes], None] | None = None,
    after_layout: Callable[[Axes, QuadMesh], None] | None = None,
    caption: str = "",
) -> Axes:
    """Draws a heat map, rows from the bottom.

    Args:
        values: rows × columns; cells that are not finite are left open, on a hatched ground.
        scale, limits, tail: which colours, as in `normalize`.
        label: name and unit of the values, for the colour bar.
        ax: axes to draw into; None makes a figure.
        size: width and height of that figure, inches.
        y: edges of the rows, one more than there are rows; by default row i lies around y = i.
        classes: entries of a legend that takes the colour bar's place.
        contours: line style by value, of lines through the cells and the colour bar.
        before_layout: draws what takes room whatever size the axes will have.
        after_layout: draws what depends on the size, such as ticks, which are thinned until they fit.
        caption: "" for one axes among several, whose figure gets its own.

    Returns:
        The axes, with neither ticks nor title but those that the callbacks make.
    """
    target = ax or new_figure(*size).subplots()
    cells = draw_cells(target, values, normalize(scale, values, limits, tail=tail), scale, y=y)
    if before_layout is not None:
        before_layout(target)
    if classes:
        size_of_text = STYLE["legend.fontsize"]
        target.legend(handles=list(classes), loc="upper left", bbox_to_anchor=(1.0, 1.0), fontsize=size_of_text, frameon=False)
    else:
        bar = color_bar(target, cells, values, label)
        if contours:
            color = "0.2" if scale.cmap == "RdBu_r" else "white"
            lines = target.contour(values, levels=list(contours), colors=color, linewidths=0.8, linestyles=list(contours.values()))
            bar.add_lines(lines)
    run_layout(target)
    if after_layout is not None:
        after_layout(target, cells)
    if caption:
        complete_axes(target, caption, given=ax)
    return target


def label_sites(ax: Axes, names: Sequence[str], dim: str) -> None:
    """Sites or modules (`dim` says which) under the columns."""
    ax.set_xticks(range(len(names)), [MODULE_NAMES.get(name, name) for name in names], rotation=45, ha="right", rotation_mode="anchor")
    ax.set_xlabel("site, in the order the data flows" if dim == "site" else dim)
