"""What changed between two sets of measurements, with its interval."""

from __future__ import annotations

import math

import numpy as np
from jaxtyping import Bool, Float

from layerlens.metrics.intervals import LEVEL, difference_bounds, interval

Array = np.ndarray


def difference_of_means(
    before: Float[Array, "*rest"],
    after: Float[Array, "*rest"],
    before_draws: Float[Array, "resamples *rest"],
    after_draws: Float[Array, "resamples *rest"],
    n: int,
    level: float = LEVEL,
    bounds: tuple[float, float] = (-math.inf, math.inf),
) -> tuple[Float[Array, "*rest"], Float[Array, "*rest"], Float[Array, "*rest"]]:
    """Δ = m_after − m_before, and the low and high end of its bootstrap interval (Efron & Tibshirani 1993, chapter 13).

    The interval is that of Δ*_b = m*_after,b − m*_before,b over the resamples b = 1 … `resamples` of `n` problems. If resample b drew
    the same problems on both sides, it is the interval of paired problems, otherwise that of two independent sets; `n` is then the
    size of the smaller set, which makes it wide rather than narrow. NaN resamples are left out; if all are NaN, so are both ends.
    `bounds` is the range of each mean: no end lies outside that of their difference.
    """
    low, high = interval(after_draws - before_draws, after - before, n, level, bounds=difference_bounds(bounds))
    return after - before, low, high


def contains_zero(low: Float[Array, "*rest"], high: Float[Array, "*rest"]) -> Bool[Array, "*rest"]:
    """Whether an interval from `low` to `high` contains 0; False if one of its ends is NaN."""
    return np.logical_and(low <= 0, high >= 0)


def change_since_first(values: Float[Array, "*rest steps"]) -> Float[Array, "*rest steps"]:
    """x_t − x_0: what has changed since the first of the steps, which lie along the last axis."""
    change: Array = values - values[..., :1]
    return change
