"""Means over problems with their bootstrap intervals: Avg@K, Pass@k and what else is scored once per problem."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd
from jaxtyping import Bool, Float

from layerlens.metrics.intervals import LEVEL, RESAMPLES, bootstrap_means, interval
from layerlens.metrics.pass_at_k import pass_at_k

Array = np.ndarray


class Estimate(NamedTuple):
    """A mean over problems and the two ends of its bootstrap interval, in the unit of the scores; the ends are NaN for a single problem."""

    mean: float
    low: float
    high: float

    def to_json(self) -> dict[str, float | None]:
        """The three numbers by name, for JSON; an end that does not exist is None."""
        return {name: None if math.isnan(value) else value for name, value in self._asdict().items()}


def estimate_mean(
    scores: Float[Array, " problems"],
    *,
    level: float = LEVEL,
    resamples: int = RESAMPLES,
    seed: int = 0,
    bounds: tuple[float, float] = (0.0, 1.0),
) -> Estimate:
    """The mean of one score per problem, with its interval over `resamples` bootstrap draws of the problems.

    `bounds` is the range of the scores: no end of the interval lies outside it.

    One problem says nothing about the spread between problems: its interval is NaN. Raises ValueError if there are no scores.
    """
    if not len(scores):
        raise ValueError("expected the scores of at least one problem, got none")
    mean, resampled = bootstrap_means(scores, np.ones_like(scores), resamples, seed)
    low, high = interval(resampled, mean, len(scores), level, bounds=bounds)
    return Estimate(float(mean), float(low), float(high))


def powers_of_two(n: int) -> list[int]:
    """1, 2, 4, ... up to n."""
    return [1 << power for power in range(n.bit_length())]


def pass_table(
    correct: Bool[Array, "problems answers"],
    ks: Sequence[int] | None = None,
    *,
    level: float = LEVEL,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> pd.DataFrame:
    """Pass@k averaged over problems, one row per k: `k`, `mean`, and the ends `low` and `high` of the bootstrap interval over problems.

    `ks` are 1, 2, 4, ... up to the number of answers by default. The interval of a single problem is NaN.

    Raises ValueError for a k outside 1..answers.
    """
    n = correct.shape[1]
    ks = powers_of_two(n) if ks is None else list(ks)
    counts = correct.sum(axis=1)
    values = np.stack([np.asarray(pass_at_k(n, counts, k)) for k in ks], axis=1)
    mean, resampled = bootstrap_means(values, np.ones_like(values), resamples, seed)
    low, high = interval(resampled, mean, len(values), level, bounds=(0.0, 1.0))
    return pd.DataFrame({"k": ks, "mean": mean, "low": low, "high": high})
