"""Text sizes, colours and line styles of every figure; lines can be told apart in grey and with any colour vision."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import wraps
from typing import Any, ParamSpec, TypeVar

import matplotlib
import seaborn
from matplotlib import is_interactive, rc_context

from layerlens.plots.kit.labels import families

P = ParamSpec("P")
R = TypeVar("R")

STYLE: dict[str, Any] = {
    "text.usetex": False,
    "font.size": 8.0,
    "axes.titlesize": 9.0,
    "axes.titlelocation": "left",
    "axes.labelsize": 8.0,
    "axes.linewidth": 0.7,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "xtick.labelsize": 7.0,
    "ytick.labelsize": 7.0,
    "xtick.major.width": 0.7,
    "ytick.major.width": 0.7,
    "legend.fontsize": 7.0,
    "legend.frameon": False,
    "lines.linewidth": 1.4,
    "lines.markersize": 3.5,
    "hatch.linewidth": 0.5,
}
"""rcParams while a figure is drawn."""

CAPTION_SIZE = 6.5
GREY = "0.35"

# distinct with any colour vision
BLUE, ORANGE, GREEN, VERMILLION, PURPLE, _, _, _, _, SKY = seaborn.color_palette("colorblind").as_hex()
BLACK = "#000000"


@dataclass(frozen=True)
class LineStyle:
    """A line that is told from others by marker and dashes as well as by colour; `filled`: whether its markers are."""

    color: str
    marker: str
    linestyle: Any
    filled: bool = True


MODULE_STYLES = {
    "attn": LineStyle(BLUE, "s", "--", filled=False),
    "ffn": LineStyle(VERMILLION, "o", "-"),
    "layer": LineStyle("#444444", "D", ":", filled=False),
}
MODULE_NAMES = {"attn": "attention", "ffn": "FFN", "layer": "whole layer"}

_COLORS = (BLUE, VERMILLION, GREEN, PURPLE, BLACK, ORANGE, SKY)
_MARKERS = ("o", "s", "^", "D", "v", "P", "X", "<", ">")
_DASHES: tuple[Any, ...] = ("-", "--", "-.", ":", (0, (5, 1, 1, 1, 1, 1)))

PHASE_TINTS = {"exploration": "#FBE3D0", "integration": "#F1F1F1", "convergence": "#D8E8F4"}


def line_style(number: int) -> LineStyle:
    """The style of the number-th line in a comparison, from 0; no two of the first 300 are the same."""
    return LineStyle(_COLORS[number % len(_COLORS)], _MARKERS[number % len(_MARKERS)], _DASHES[number % len(_DASHES)])


def styled(draw: Callable[P, R]) -> Callable[P, R]:
    """Makes a plot draw with `STYLE`, and leaves the caller's rcParams as they were."""

    @wraps(draw)
    def inside(*args: P.args, **kwargs: P.kwargs) -> R:
        with _style():
            return draw(*args, **kwargs)

    return inside


@contextmanager
def _style() -> Iterator[None]:
    """`STYLE`, for as long as the context is open.

    The first figure of a notebook loads the notebook's backend, which makes pyplot interactive. That stays: if it were set back with the
    other rcParams, the notebook would show no figure but the first.
    """
    settings: Any = {**STYLE, "font.family": families()}
    interactive = is_interactive()
    try:
        with rc_context(settings):
            try:
                yield
            finally:
                interactive = is_interactive()
    finally:
        matplotlib.interactive(interactive)
