"""Frames, labels, titles and legends of axes, which may be the caller's."""

from __future__ import annotations

from collections.abc import Sequence
from math import ceil, floor

from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, NullFormatter

from layerlens.plots.kit.figure import axes_size, figure_of
from layerlens.plots.kit.labels import families, plain, power, wrapped
from layerlens.plots.kit.style import STYLE


def fit_labels(ax: Axes) -> None:
    """Gives the labels of both axes our text sizes, and breaks them into as many lines as they need."""
    width, height = axes_size(ax)
    for axis, inches in ((ax.xaxis, width), (ax.yaxis, height)):
        axis.label.set(
            text=wrapped(axis.label.get_text(), inches, STYLE["axes.labelsize"]), size=STYLE["axes.labelsize"], family=families()
        )
    ax.tick_params(labelsize=STYLE["xtick.labelsize"], width=STYLE["xtick.major.width"])


def legend_above(ax: Axes) -> None:
    """A legend over the whole figure of what has a label in `ax`, in as many columns as fit; none if nothing has one."""
    handles, labels = ax.get_legend_handles_labels()
    if labels:
        figure = figure_of(ax)
        widest = max(map(len, labels)) * 0.6 * 7 + 40
        columns = min(len(labels), max(1, int((figure.get_figwidth() - 0.2) * 72 // widest)))
        figure.legend(handles, labels, loc="outside upper center", ncols=columns, handlelength=3)


def open_frame(ax: Axes) -> None:
    """Leaves out the lines above and right of curves."""
    ax.spines[["top", "right"]].set_visible(False)
    ax.spines[["left", "bottom"]].set_linewidth(STYLE["axes.linewidth"])


def log_axis(ax: Axes) -> None:
    """Makes the y axis logarithmic, its numbers without formulas."""
    ax.set_yscale("log")
    # matplotlib's own formatter writes powers as formulas, and crowds the axis with minor numbers
    ax.yaxis.set_major_formatter(FuncFormatter(lambda value, _: power(value)))
    low, high = ax.get_ylim()
    ax.yaxis.set_minor_formatter(NullFormatter() if high / low > 12 else FuncFormatter(lambda value, _: f"{value:.3g}"))


def set_title(ax: Axes, title: str, pad: float = 5.0) -> None:
    """A title on the left, `pad` points above the axes, in as many lines as it takes."""
    size = STYLE["axes.titlesize"]
    ax.set_title(wrapped(plain(title), axes_size(ax)[0], size), loc="left", pad=pad, fontsize=size, fontfamily=families())


def title_and_legend(ax: Axes, title: str, handles: Sequence[Artist] | None = None) -> None:
    """The title, and between title and axes a legend of `handles` (by default of all that has a label), in as many columns as fit."""
    handles = ax.get_legend_handles_labels()[0] if handles is None else handles
    labels = [str(handle.get_label()) for handle in handles]
    pad, size = 5.0, float(STYLE["legend.fontsize"])
    if handles:
        widest = max(len(label) for label in labels) * 0.52 * size + 4.4 * size
        columns = min(len(labels), max(1, floor(axes_size(ax)[0] * 72 / widest)))
        ax.legend(
            handles=handles, loc="lower left", bbox_to_anchor=(0, 1.0), ncols=columns, borderaxespad=0.3, borderpad=0.2, handlelength=2.8,
            columnspacing=1.4, fontsize=size, frameon=False, prop={"family": families(), "size": size},
        )  # fmt: skip
        pad = 8 + ceil(len(labels) / columns) * size * 1.5
    set_title(ax, title, pad)
