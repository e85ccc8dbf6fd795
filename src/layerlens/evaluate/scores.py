"""Means over problems with their intervals: Avg@K, Pass@k and what else is scored once per problem.

Two questions have two intervals. *Other problems like these*: problems are resampled. *Other answers to these very problems*: the counts
of correct answers give the variance of each problem's score (`answer_variance`), and the problems stay as they are.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import NormalDist
from typing import NamedTuple

import numpy as np
import pandas as pd
from jaxtyping import Bool, Float

from layerlens.metrics.intervals import LEVEL, RESAMPLES, bootstrap_means, constant_bounds, interval
from layerlens.metrics.pass_at_k import answer_variance, pass_at_k

Array = np.ndarray


class Estimate(NamedTuple):
    """A mean over problems and the two ends of its interval, in the unit of the scores; an end that does not exist is NaN."""

    mean: float
    low: float
    high: float

    def to_json(self) -> dict[str, float | bool | None]:
        """The three numbers by name, for JSON; an end that does not exist is None."""
        return {name: None if math.isnan(value) else value for name, value in self._asdict().items()}


class BoundEstimate(Estimate):
    """An estimate from data without any spread, such as 8 of 8 right: its ends are bounds, not the interval of an estimate."""

    def to_json(self) -> dict[str, float | bool | None]:
        """As of an `Estimate`, with `bound` true."""
        return super().to_json() | {"bound": True}


def estimate_mean(
    scores: Float[Array, " problems"],
    *,
    level: float = LEVEL,
    resamples: int = RESAMPLES,
    seed: int = 0,
    bounds: tuple[float, float] = (0.0, 1.0),
) -> Estimate:
    """The mean of one score per problem, with its interval for other problems like these: `resamples` bootstrap draws of the problems.

    `bounds` is the range of the scores: no end of the interval lies outside it. If all problems have the same score, resamples have no
    spread; a `BoundEstimate` then has the bounds of `constant_bounds`. One problem says nothing about the spread between problems: its
    interval is NaN. Raises ValueError if there are no scores.
    """
    if not len(scores):
        raise ValueError("expected the scores of at least one problem, got none")
    mean, resampled = bootstrap_means(scores, np.ones_like(scores), resamples, seed)
    if len(scores) > 1 and np.ptp(scores) < 1e-12:
        return BoundEstimate(float(mean), *constant_bounds(float(mean), len(scores), level, bounds))
    low, high = interval(resampled, mean, len(scores), level, bounds=bounds)
    return Estimate(float(mean), float(low), float(high))


def estimate_over_answers(mean: float, *correct: Bool[Array, "problems _"], k: int = 1, level: float = LEVEL) -> Estimate:
    """A mean of Pass@k, or a difference of two, with its interval for other answers to these very problems.

    ± z · √(Σ v) / problems, v the variances of all problems' scores (`answer_variance`). NaN for one answer per problem, for k = K, and
    for k above 1 if no problem's score varies. At k = 1 each problem's answers are then all right or all wrong, and a `BoundEstimate`
    has bounds: n problems with K answers each come out so with probability Π (1 - d_i)^K, d_i how far problem i is from its score, which
    is at least 1 - level only if the mean of d is at most 1 - (1 - level)^(1 / nK).

    Args:
        mean: what the interval is around.
        correct: whether each answer is correct, of one evaluation, or of both of a difference.
        level: of the interval, between 0 and 1.
    """
    problems = len(correct[0])
    variances = [answer_variance(each.shape[1], each.sum(axis=1), k) for each in correct]
    reach = NormalDist().inv_cdf((1 + level) / 2) * math.sqrt(sum(float(each.sum()) for each in variances)) / problems
    low, high = (-1.0 if len(correct) > 1 else 0.0), 1.0
    if reach > 0:
        return Estimate(mean, max(low, mean - reach), min(high, mean + reach))
    if math.isnan(reach) or k > 1:
        return Estimate(mean, math.nan, math.nan)
    reach = sum(1 - (1 - level) ** (1 / each.size) for each in correct)
    return BoundEstimate(mean, max(low, mean - reach), min(high, mean + reach))


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
    """Pass@k averaged over problems, one row per k.

    Columns: `k`, `mean`; `low` and `high`, the interval for other problems like these, and `bound`, whether these ends are bounds as all
    problems have the same score; `answers_low` and `answers_high`, the interval for other answers to these very problems.

    `ks` are 1, 2, 4, ... up to the number of answers by default. Intervals that do not exist are NaN (`estimate_mean`,
    `estimate_over_answers`).

    Raises ValueError for a k outside 1..answers.
    """
    n = correct.shape[1]
    rows = []
    for k in powers_of_two(n) if ks is None else ks:
        estimate = estimate_mean(np.asarray(pass_at_k(n, correct.sum(axis=1), k)), level=level, resamples=resamples, seed=seed)
        _, low, high = estimate_over_answers(estimate.mean, correct, k=k, level=level)
        bound = isinstance(estimate, BoundEstimate)
        rows.append({"k": k, **estimate._asdict(), "bound": bound, "answers_low": low, "answers_high": high})
    return pd.DataFrame(rows)
