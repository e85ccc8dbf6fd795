"""Figures of the study that are not among the package's plots: what was found, with both intervals."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from benchmarks.study.findings import Result
from matplotlib.axes import Axes

from layerlens.plots import save
from layerlens.plots.kit.caption import complete_axes
from layerlens.plots.kit.figure import new_figure
from layerlens.plots.kit.labels import plain
from layerlens.plots.kit.style import BLUE, GREY, VERMILLION, line_style, styled

INTERVALS = "Thick: 95% interval for other problems like these; thin: for other seeds of training."
SEEDS = "Lines: 95% interval for other seeds of training."


@styled
def forest(panels: Mapping[str, Mapping[str, Result]], label: str | Sequence[str], caption: str, file: Path, scale: float = 1.0) -> str:
    """One row for each finding, in a panel for each group: its estimate times `scale` with both intervals, and a line at 0.

    Panels have one axis, or each its own if each has a label.
    """
    rows = max(map(len, panels.values()))
    figure = new_figure(2.2 + 2.6 * len(panels), 1.2 + 0.24 * rows)
    axes = figure.subplots(
        1, len(panels), squeeze=False, sharex=isinstance(label, str), sharey=len({tuple(each) for each in panels.values()}) == 1
    )[0]
    labels = [label] * len(panels) if isinstance(label, str) else label
    for ax, (title, found), name in zip(axes, panels.items(), labels, strict=True):
        places = range(len(found), 0, -1)
        for place, each in zip(places, found.values(), strict=True):
            draw_ends(ax, place, each, scale, vertical=False)
        ax.axvline(0, color=GREY, linewidth=0.7, linestyle=":")
        ax.set_yticks(list(places), [plain(each) for each in found])
        ax.set_ylim(0.4, len(found) + 0.6)
        ax.set_title(plain(title))
        ax.set_xlabel(name)
    return _saved(axes, f"{caption} {_counts(panels)}", file)


@styled
def by_layer(
    panels: Mapping[str, Mapping[int, Result]],
    marks: Mapping[str, Mapping[int, str]],
    label: str,
    caption: str,
    file: Path,
    scale: float = 1.0,
) -> str:
    """One finding for each layer, in a panel for each group, with words above the layers in `marks`."""
    figure = new_figure(1.2 + 3.2 * len(panels), 3.4)
    axes = figure.subplots(1, len(panels), squeeze=False, sharey=True)[0]
    for ax, (title, found) in zip(axes, panels.items(), strict=True):
        for layer, each in found.items():
            draw_ends(ax, layer, each, scale, vertical=True)
        ax.axhline(0, color=GREY, linewidth=0.7, linestyle=":")
        ax.set_xticks(sorted({*found, *marks.get(title, {})}))
        ax.set_title(plain(title))
        ax.set_xlabel("layer")
        ax.margins(x=0.08)
    axes[0].set_ylabel(label)
    low, high = axes[0].get_ylim()
    axes[0].set_ylim(low, high + 0.85 * (high - low) * any(marks.values()))  # words stand above all intervals
    for ax, title in zip(axes, panels, strict=True):
        for layer, words in marks.get(title, {}).items():
            ax.text(layer, high, words, rotation=90, va="bottom", ha="center", multialignment="left", fontsize=6, color=GREY)
    return _saved(axes, f"{caption} {_counts(panels)}", file)


@styled
def lines(panels: Mapping[str, Mapping[str, Sequence[Sequence[float]]]], label: str, caption: str, file: Path, log: bool = False) -> str:
    """Curves over layers, in a panel for each group; the curves of one name (of several seeds) share a style."""
    figure = new_figure(1.2 + 2.7 * len(panels), 3.0)
    axes = figure.subplots(1, len(panels), squeeze=False, sharey=True)[0]
    for ax, (title, groups) in zip(axes, panels.items(), strict=True):
        for number, (name, curves) in enumerate(groups.items()):
            style = line_style(number)
            for which, curve in enumerate(curves):
                kind: dict[str, Any] = {"color": style.color, "linestyle": style.linestyle, "marker": style.marker, "markersize": 2.5}
                ax.plot(np.arange(1, len(curve) + 1), curve, linewidth=1.0, alpha=0.8, label="" if which else name, **kind)
        ax.set_title(plain(title))
        ax.set_xlabel("layer")
        if log:
            ax.set_yscale("log")
        ax.set_xticks(range(2, len(curve) + 1, 2))
    axes[0].legend()
    axes[0].set_ylabel(label)
    return _saved(axes, caption, file)


def draw_ends(ax: Axes, place: float, found: Result, scale: float, vertical: bool) -> None:
    """An estimate with its interval for other problems (thick) and, on it, for other seeds (thin); ends that do not exist are left out."""
    for prefix, width, color in (("", 3.2, BLUE), ("seeds_", 1.0, VERMILLION)):
        ends = np.array([place, place]), scale * np.array([found.get(f"{prefix}low", np.nan), found.get(f"{prefix}high", np.nan)], float)
        ax.plot(*(ends if vertical else ends[::-1]), color=color, linewidth=width, solid_capstyle="butt")
    point = place, scale * found["estimate"]
    ax.plot(*(point if vertical else point[::-1]), "o", color="black", markersize=3, zorder=3)


def _counts(panels: Mapping[str, Mapping[Any, Result]]) -> str:
    """Of how many seeds and problems the findings are, as far as they say: "4 seeds; 501 problems"."""
    found = [each for panel in panels.values() for each in panel.values()]
    told = {what: sorted({each[what] for each in found if what in each}) for what in ("seeds", "problems")}
    return "; ".join(f"{' or '.join(map(str, counts))} {what}" for what, counts in told.items() if counts) + "."


def _saved(axes: np.ndarray, caption: str, file: Path) -> str:
    complete_axes(axes, caption)
    return str(save(axes, file).name)
