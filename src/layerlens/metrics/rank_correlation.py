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
    return float(rank_correlations(a[known], b[known]))


def rank_correlations(a: Float[Array, "*many pairs"], b: Float[Array, " pairs"]) -> Float[Array, "*many"]:
    """`rank_correlation` of `b` with each row of `a`, all at once; neither may hold NaN."""
    ranks, others = (rankdata(each, axis=-1) - (each.shape[-1] + 1) / 2 for each in (a, b))
    with np.errstate(invalid="ignore"):
        return np.asarray((ranks @ others) / (np.linalg.norm(ranks, axis=-1) * np.linalg.norm(others)))
