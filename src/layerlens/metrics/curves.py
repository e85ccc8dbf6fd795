"""What is computed of a curve before it is drawn: shares of its maximum, bands of quantiles, a smoothed series.

Pure functions on arrays. A result has the unit of its arguments unless its docstring says otherwise.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
from jaxtyping import Float, Int

Array = np.ndarray

SMOOTHED_SHARE = 20
"""A series is smoothed over its number of entries divided by this, but over at least `SHORTEST_WINDOW` entries."""
SHORTEST_WINDOW = 5


def shares_of_maximum(
    mean: Float[Array, " points"], low: Float[Array, " points"], high: Float[Array, " points"]
) -> tuple[Float[Array, " points"], Float[Array, " points"], Float[Array, " points"]]:
    """A curve and its interval, each divided by the largest value of the curve, max_i m_i: without a unit, the curve at most 1."""
    largest = np.fmax.reduce(mean)
    return mean / largest, low / largest, high / largest


def quantile_bands(
    values: Float[Array, "tokens layers"], bands: Sequence[tuple[float, float]]
) -> tuple[Float[Array, " layers"], list[Float[Array, "2 layers"]]]:
    """The median over tokens of each layer, and for each band (q, p) the quantiles q and p, interpolated linearly.

    NaN values are left out; a layer without a finite value gets NaN.
    """
    known = np.isfinite(values).any(axis=0)
    median = np.full(values.shape[1], np.nan)
    median[known] = np.nanmedian(values[:, known], axis=0)
    edges = [np.full((2, values.shape[1]), np.nan) for _ in bands]
    for ends, band in zip(edges, bands, strict=True):
        ends[:, known] = np.nanquantile(values[:, known], list(band), axis=0)
    return median, edges


def smoothing_window(entries: int) -> int:
    """The odd number of entries over which a series of `entries` entries is smoothed; 1, so not at all, if it has fewer than 20."""
    return 1 if entries < SMOOTHED_SHARE else max(SHORTEST_WINDOW, entries // SMOOTHED_SHARE // 2 * 2 + 1)


def phase_numbers(steps: Int[Array, " entries"], last_steps: Sequence[int]) -> Int[Array, " entries"]:
    """The phase that each step belongs to, from 0, given the last step of every phase in order; later steps form one more phase."""
    return np.searchsorted(np.asarray(last_steps, np.int64), steps)


def smoothed(values: Float[Array, " entries"], window: int, phases: Int[Array, " entries"]) -> Float[Array, " entries"]:
    """The centred mean: y_i is the mean of the x_j of the same phase with j among the `window` entries around i.

    Near the ends of a phase fewer entries are averaged, so nothing leaks from one phase into the next. NaN entries are left out.
    An even window reaches one entry further back than forward.
    """
    frame = pd.DataFrame({"phase": phases, "value": values})
    means = frame.groupby("phase")["value"].transform(lambda part: part.rolling(window, center=True, min_periods=1).mean())
    averaged: Array = means.to_numpy()
    return averaged
