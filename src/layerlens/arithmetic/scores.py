"""Accuracy from counts of right answers, with intervals over problems."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from layerlens.resample import bootstrap_means, interval


@dataclass(frozen=True)
class Estimate:
    """A mean over problems with its 95% bootstrap interval, all as shares from 0 to 1."""

    mean: float
    low: float
    high: float


def pass_at_k(n: int, c: int, k: int) -> float:
    """Unbiased chance that at least one of `k` samples is right, given `c` right ones among `n`: 1 - C(n-c, k)/C(n, k)."""
    if not 0 <= c <= n or not 1 <= k <= n:
        raise ValueError(f"expected 0 <= c <= n and 1 <= k <= n, got n={n}, c={c}, k={k}")
    return 1.0 - math.comb(n - c, k) / math.comb(n, k)


def bootstrap(scores: Sequence[float], seed: int = 0) -> Estimate:
    """Mean of one score per problem, and the 95% percentile interval over resampled problems."""
    if not scores:
        raise ValueError("expected at least one problem, got none")
    values = np.asarray(scores, dtype=np.float64)[:, None]
    mean, means = bootstrap_means(values, np.ones_like(values), seed=seed)
    low, high = interval(means)
    return Estimate(float(mean[0]), float(low[0]), float(high[0]))
