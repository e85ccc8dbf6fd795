"""Accuracy from counts of right answers, with intervals over problems."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from layerlens.metrics.bootstrap import bootstrap_means, interval


@dataclass(frozen=True)
class Estimate:
    """A mean over problems with its 95% bootstrap interval, all as shares from 0 to 1."""

    mean: float
    low: float
    high: float


def bootstrap(scores: Sequence[float], seed: int = 0) -> Estimate:
    """Mean of one score per problem, and the 95% percentile interval over resampled problems."""
    if not scores:
        raise ValueError("expected at least one problem, got none")
    values = np.asarray(scores, dtype=np.float64)[:, None]
    mean, means = bootstrap_means(values, np.ones_like(values), seed=seed)
    low, high = interval(means)
    return Estimate(float(mean[0]), float(low[0]), float(high[0]))
