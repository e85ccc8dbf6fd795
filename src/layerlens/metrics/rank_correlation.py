"""Spearman's rank correlation: how nearly one quantity is a rising (or falling) function of another."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float
from scipy.stats import rankdata

Array = np.ndarray

MOST_PAIRS = 1 << 17
"""Of more pairs than this, so many evenly spaced ones are ranked."""


def rank_correlation(a: Float[Array, " pairs"], b: Float[Array, " pairs"]) -> float:
    """Pearson's correlation of the ranks of `a` and `b` (equal values share their mean rank), -1...1 (Spearman 1904).

    Pairs with a NaN are left out. NaN if fewer than two are left, or if one of the two quantities is constant.
    """
    known = np.flatnonzero(~(np.isnan(a) | np.isnan(b)))
    if len(known) > MOST_PAIRS:
        known = known[np.linspace(0, len(known) - 1, MOST_PAIRS).round().astype(np.int64)]
    ranks = [rankdata(values[known]) for values in (a, b)]
    spreads = [rank.std() if len(rank) else 0.0 for rank in ranks]
    if min(spreads) == 0:
        return float("nan")
    return float(np.mean((ranks[0] - ranks[0].mean()) * (ranks[1] - ranks[1].mean())) / (spreads[0] * spreads[1]))
