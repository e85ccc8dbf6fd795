"""Figures that leak nothing: where plots draw, and how large their axes are."""

from __future__ import annotations

import sys
import warnings

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from layerlens.errors import SelectionError


def new_figure(width: float, height: float) -> Figure:
    """A figure of this size in inches.

    In a notebook, or with matplotlib interactive, it belongs to pyplot, which shows and closes it. Elsewhere pyplot does
    not know it: no window opens, nothing needs closing, and it is freed with its last reference.
    """
    size = (width, height)
    if matplotlib.is_interactive() or "ipykernel" in sys.modules:
        import matplotlib.pyplot as plt

        return plt.figure(figsize=size, layout="constrained")
    return Figure(figsize=size, layout="constrained")


def figure_of(ax: Axes) -> Figure:
    """The whole figure that an axes lies in."""
    figure = ax.get_figure(root=True)
    assert figure is not None
    return figure


def drawn_figure(drawn: Figure | Axes | np.ndarray) -> Figure:
    """The figure of what a plot returned: axes, or an array of axes. Raises SelectionError if it is neither."""
    if isinstance(drawn, Figure):
        return drawn
    axes = [ax for ax in np.ravel(np.asarray(drawn, dtype=object)) if isinstance(ax, Axes)]
    figure = axes[0].get_figure(root=True) if axes else None
    if figure is None:
        raise SelectionError(f"expected a figure or the axes that a plot returned, got {type(drawn).__name__}")
    return figure


def run_layout(ax: Axes) -> None:
    """Lays out the figure of this axes as drawn so far, so that `axes_size` can be asked for."""
    figure = figure_of(ax)
    engine = figure.get_layout_engine()
    if engine is not None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # a figure too small for its layout warns again when it is drawn for good
            engine.execute(figure)


def axes_size(ax: Axes) -> tuple[float, float]:
    """Width and height of an axes in inches, as last laid out."""
    box, dpi = ax.get_window_extent(), figure_of(ax).dpi
    return float(box.width / dpi), float(box.height / dpi)
