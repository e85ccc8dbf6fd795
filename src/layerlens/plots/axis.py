"""Axes that count layers from 1, or measure depth as a share of the model, and the legend above them."""

from __future__ import annotations

from collections.abc import Sequence
from math import ceil, floor

import numpy as np
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.ticker import FuncFormatter, NullFormatter

from layerlens.plots.canvas import axes_size
from layerlens.plots.labels import families, numbered, plain, power, wrapped
from layerlens.plots.style import STYLE
from layerlens.results import Run

_STEPS = (1, 2, 3, 4, 5, 6, 8, 10, 12, 16, 20, 25, 40, 50, 100)


def layer_ticks(places: Sequence[int], gap: float) -> list[int]:
    """Those of the places that lie `gap` or more apart: the first, the last, and round numbers where none is missing."""
    first, last = places[0], places[-1]
    if list(places) == list(range(first, last + 1)):
        step = next((s for s in _STEPS if s >= gap), ceil(gap))
        places = [first, *(p for p in range(first + 1, last) if p % step == 0), last]
        gap = min(gap, 0.6 * step)
    kept = [first]
    for place in places[1:-1]:
        if place - kept[-1] >= gap and last - place >= gap:
            kept.append(place)
    return kept if last == first else [*kept, last]


def number_layers(axis: Axis, layers: Sequence[int], inches: float, *, apart: float, rows: bool = False) -> None:
    """Ticks at layers, about `apart` inches or more from each other. `rows`: a layer lies at its row, not at its number."""
    layers = list(layers)
    spread = len(layers) if rows else layers[-1] - layers[0] + 1
    gap = max(1.0, apart * spread / inches)
    regular = layers == list(range(layers[0], layers[-1] + 1))
    if rows and not regular:
        places = layer_ticks([2 * i for i in range(len(layers))], 2 * gap)  # doubled: never taken for layer numbers
        axis.set_ticks([place // 2 for place in places], [str(layers[place // 2]) for place in places])
    else:
        ticks = layer_ticks(layers, gap)
        axis.set_ticks([layers.index(tick) for tick in ticks] if rows else ticks, [str(tick) for tick in ticks])
    axis.set_label_text("layer")


def depth_axis(ax: Axes, runs: Sequence[Run], relative: bool) -> None:
    """The x axis of curves by layer: layers of the deepest run, or relative depth."""
    if relative:
        ax.set_xlim(0, 1.02)
        ax.set_xticks(np.linspace(0, 1, 6 if axes_size(ax)[0] > 2 else 3))
        ax.set_xlabel("relative depth  l / L")
        return
    layers = sorted({layer for run in runs for layer in run.layers})
    margin = 0.5 + 0.01 * (layers[-1] - layers[0])
    ax.set_xlim(layers[0] - margin, layers[-1] + margin)
    number_layers(ax.xaxis, layers, axes_size(ax)[0], apart=0.22)


def depth(run: Run, relative: bool) -> np.ndarray:
    """Where a run's layers lie on that axis."""
    layers = np.asarray(run.layers, float)
    return layers / run.n_layers if relative else layers


def by_share(runs: Sequence[Run], relative: bool | None) -> bool:
    """Whether to use relative depth: as asked, else where the models differ in depth."""
    return len({run.n_layers for run in runs}) > 1 if relative is None else relative


def dress(ax: Axes) -> None:
    """Our text sizes and light frame on an axes that may be the caller's; labels in as many lines as they need."""
    width, height = axes_size(ax)
    for axis, inches in ((ax.xaxis, width), (ax.yaxis, height)):
        axis.label.set(
            text=wrapped(axis.label.get_text(), inches, STYLE["axes.labelsize"]), size=STYLE["axes.labelsize"], family=families()
        )
    ax.tick_params(labelsize=STYLE["xtick.labelsize"], width=STYLE["xtick.major.width"])


def open_frame(ax: Axes) -> None:
    """No line above and right of curves."""
    ax.spines[["top", "right"]].set_visible(False)
    ax.spines[["left", "bottom"]].set_linewidth(STYLE["axes.linewidth"])


def log_axis(ax: Axes) -> None:
    """A logarithmic y axis, its numbers without formulas."""
    ax.set_yscale("log")
    # matplotlib's own formatter writes powers as formulas, and crowds the axis with minor numbers
    ax.yaxis.set_major_formatter(FuncFormatter(lambda value, _: power(value)))
    low, high = ax.get_ylim()
    ax.yaxis.set_minor_formatter(NullFormatter() if high / low > 12 else FuncFormatter(lambda value, _: f"{value:.3g}"))


def draw_band(ax: Axes, x: np.ndarray, low: np.ndarray, high: np.ndarray, color: str) -> None:
    """An interval as a band, where it is known."""
    known = np.isfinite(low) & np.isfinite(high)
    if known.any():
        ax.fill_between(x, low, high, where=known.tolist(), color=color, alpha=0.2, linewidth=0)


def head(ax: Axes, title: str, handles: Sequence[Artist] | None = None) -> None:
    """The title, and between it and the axes a legend of `handles` (or what has labels), in as many columns as fit."""
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


def set_title(ax: Axes, title: str, pad: float) -> None:
    """A title on the left, in as many lines as it takes."""
    size = STYLE["axes.titlesize"]
    ax.set_title(wrapped(plain(title), axes_size(ax)[0], size), loc="left", pad=pad, fontsize=size, fontfamily=families())


def labels_of(runs: Sequence[Run]) -> list[str]:
    """A legend entry per run: its model, and whatever else tells runs of one model apart."""
    names = [run.model for run in runs]
    if len({run.norm for run in runs}) > 1:
        names = [f"{name} (norm: {run.norm})" for name, run in zip(names, runs, strict=True)]
    return numbered(names)
