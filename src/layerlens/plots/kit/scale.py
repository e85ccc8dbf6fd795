"""Colour scales: one for each metric, the same in all figures."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from matplotlib.colors import Colormap, LogNorm, Normalize

from layerlens.errors import SelectionError

Limits = tuple[float, float] | None
"""Ends of a colour scale; None takes the data's."""


@dataclass(frozen=True)
class Scale:
    """How the values of a metric become colours.

    Attributes:
        cmap: a perceptually uniform map, a diverging one for changes, or one that is made for two classes.
        low, high: fixed ends, in the metric's unit; None takes the data's, and zero for a low end under a third of the high one.
        centred: zero is in the middle of the map.
        tail: share of one sample's values beyond either free end that get the end's colour, so that a heavy tail does not hide the rest.
        log: colours follow the logarithm.
    """

    cmap: str | Colormap
    low: float | None = None
    high: float | None = None
    centred: bool = False
    tail: float = 0.0
    log: bool = False

    def limits(self, values: np.ndarray, *, tail: bool = False) -> tuple[float, float]:
        """The ends of the scale for these values; NaN and infinities are left out, and the tail as well with `tail`."""
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


DIVERGING = Scale("RdBu_r", centred=True, tail=0.01)
"""For changes and differences, of either sign."""

SCALES: dict[str, Scale] = {
    "entropy": Scale("viridis"),
    "logit_sd": Scale("cividis", tail=0.01),
    "logp_next": Scale("cividis", high=0.0, tail=0.01),
    "skill": DIVERGING,
    "kl_to_final": Scale("magma", tail=0.01),
    "js_to_final": Scale("magma", low=0.0, high=1.0),
    "kl_from_final": Scale("magma", tail=0.01),
    "rank_next": Scale("magma", log=True),
    "renyi_2": Scale("viridis"),
    "kl_from_layer": Scale("magma", tail=0.01),
    "log_perplexity": Scale("magma"),
    "agrees": Scale("cividis", low=0.0, high=1.0),
    "entropy_change": DIVERGING,
    "stream_cosine": DIVERGING,
    "state_norm": Scale("magma", log=True),
    "similarity": Scale("viridis", high=1.0),
    "cka": Scale("viridis", high=1.0),
}


def normalize(scale: Scale, values: np.ndarray, limits: Limits = None, *, tail: bool = False) -> Normalize:
    """What maps values to the colour map, with its ends at `limits`, or by default at the limits that the scale gives these values.

    Raises SelectionError if the limits are not in order.
    """
    if limits is not None and not limits[0] < limits[1]:
        raise SelectionError(f"limits must be (low, high) with low under high, got {limits}")
    low, high = scale.limits(values, tail=tail) if limits is None else limits
    return LogNorm(max(low, 1e-12), max(high, low * 1.01)) if scale.log else Normalize(low, high)
