"""How every figure looks: text sizes, colours and line styles that read in grey and with any colour vision."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import wraps
from typing import Any, ParamSpec, TypeVar

import numpy as np
import seaborn
from matplotlib import rc_context

from layerlens.plots.labels import families

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
"""rcParams while a figure is drawn; the caller's own are as before afterwards."""

CAPTION_SIZE = 6.5
GREY = "0.35"

# distinct with any colour vision
BLUE, ORANGE, GREEN, VERMILLION, PURPLE, _, _, _, _, SKY = seaborn.color_palette("colorblind").as_hex()
BLACK = "#000000"


@dataclass(frozen=True)
class Look:
    """A line that is told from others by marker and dashes as well as by colour."""

    color: str
    marker: str
    linestyle: Any
    filled: bool = True


MODULE_LOOKS = {
    "attn": Look(BLUE, "s", "--", filled=False),
    "ffn": Look(VERMILLION, "o", "-"),
    "layer": Look("#444444", "D", ":", filled=False),
}
MODULE_NAMES = {"attn": "attention", "ffn": "FFN", "layer": "whole layer"}

_COLORS = (BLUE, VERMILLION, GREEN, PURPLE, BLACK, ORANGE, SKY)
_MARKERS = ("o", "s", "^", "D", "v", "P", "X", "<", ">")
_DASHES: tuple[Any, ...] = ("-", "--", "-.", ":", (0, (5, 1, 1, 1, 1, 1)))

PHASE_TINTS = {"exploration": "#FBE3D0", "integration": "#F1F1F1", "convergence": "#D8E8F4"}


def look(number: int) -> Look:
    """The look of the number-th model in a comparison; no two of the first 300 are the same."""
    return Look(_COLORS[number % len(_COLORS)], _MARKERS[number % len(_MARKERS)], _DASHES[number % len(_DASHES)])


@dataclass(frozen=True)
class Scale:
    """How a metric becomes colour.

    Attributes:
        cmap: a perceptually uniform map, or for changes a diverging one.
        low, high: fixed ends; None takes the data's, and zero for a low end that is small beside the high one.
        centred: zero in the middle of the map.
        tail: share of a sample's values beyond either free end that saturate, so that a heavy tail does not hide the rest.
        log: colours follow the logarithm.
    """

    cmap: str
    low: float | None = None
    high: float | None = None
    centred: bool = False
    tail: float = 0.0
    log: bool = False

    def limits(self, values: np.ndarray, *, tail: bool = False) -> tuple[float, float]:
        """The ends of the scale for these values, which may hold NaN and infinities; `tail`: leave the tail out."""
        flat = np.asarray(values, np.float64).ravel()
        flat = flat[np.isfinite(flat)]
        if flat.size == 0:
            flat = np.ones(1)
        cut = self.tail if tail else 0.0
        if self.centred:
            reach = float(np.quantile(np.abs(flat), 1 - cut)) or float(np.abs(flat).max()) or 1.0
            return -reach, reach
        low = float(np.quantile(flat, cut)) if self.low is None else self.low
        high = float(np.quantile(flat, 1 - cut)) if self.high is None else self.high
        if self.low is None and not self.log and 0 < low < high / 3:
            low = 0.0
        if high <= low:
            low, high = (low, low + 1.0) if self.low is not None else (high - 1.0, high)
        return low, high


SCALES: dict[str, Scale] = {
    "entropy": Scale("viridis"),
    "logp_next": Scale("cividis", high=0.0, tail=0.01),
    "kl_to_final": Scale("magma", tail=0.01),
    "kl_from_layer": Scale("magma", tail=0.01),
    "perplexity": Scale("magma", log=True),
    "agrees": Scale("cividis", low=0.0, high=1.0),
    "entropy_change": Scale("RdBu_r", centred=True, tail=0.01),
    "stream_cosine": Scale("RdBu_r", centred=True, tail=0.01),
    "similarity": Scale("viridis", high=1.0),
    "cka": Scale("viridis", high=1.0),
}


def styled(draw: Callable[P, R]) -> Callable[P, R]:
    """Draws in STYLE and leaves rcParams as they were."""

    @wraps(draw)
    def inside(*args: P.args, **kwargs: P.kwargs) -> R:
        settings: Any = {**STYLE, "font.family": families()}
        with rc_context(settings):
            return draw(*args, **kwargs)

    return inside
