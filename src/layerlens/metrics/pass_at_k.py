"""Avg@K and Pass@k: how good a model's sampled answers to a problem are, from which of them are correct (docs/definitions.md)."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, Float, Integer

Array = np.ndarray


def avg_at_k(correct: Bool[Array, "problems answers"], k: int | None = None) -> Float[Array, " problems"]:
    """Avg@K of each problem, the share of correct answers among its first `k` (by default all): c / k, from 0 to 1, float64.

    Its mean over problems is the accuracy that the BuPO paper reports (arXiv 2512.19673: Avg@16 for AMC23 and MATH500, Avg@32
    for AIME). Avg@K equals Pass@1 of the same answers.

    Raises ValueError unless 1 <= k <= answers.
    """
    answers = correct.shape[1]
    k = answers if k is None else k
    if not 1 <= k <= answers:
        raise ValueError(f"expected 1 <= k <= {answers}, the number of answers, got k={k}")
    return correct[:, :k].mean(axis=1, dtype=np.float64)  # type: ignore[no-any-return]


def pass_at_k(n: int, c: int | Sequence[int] | Integer[Array, "*problems"], k: int) -> float | Float[Array, "*problems"]:
    """Pass@k, the chance that at least one of `k` answers is correct, estimated without bias from `n` answers of which `c` are correct:

        Pass@k = 1 - C(n - c, k) / C(n, k)

    the share of all k-element subsets of the n answers that hold a correct one (Chen et al. 2021, "Evaluating Large Language Models
    Trained on Code", arXiv 2107.03374, equation 1). The binomial coefficients are whole numbers, so the result is exact to rounding
    for any n. It is 1 only if n - c < k; the helper that comes with the BuPO paper returns 1 for every c >= k, which is wrong
    (n=16, c=4, k=4 gives 0.728).

    Returns a float for a single count `c`, an array of the same shape for an array of counts.

    Raises ValueError unless 0 <= c <= n and 1 <= k <= n.
    """
    counts = np.asarray(c)
    distinct, index = np.unique(counts, return_inverse=True)
    estimates = np.array([_pass_at_k(n, int(count), k) for count in distinct], dtype=np.float64)
    per_problem: Float[Array, "*problems"] = estimates[index].reshape(counts.shape)
    return float(per_problem) if counts.ndim == 0 else per_problem


def answer_variance(n: int, counts: Integer[Array, " problems"], k: int) -> Float[Array, " problems"]:
    """The variance of each problem's Pass@k over other sets of `n` answers to it, of which `counts` are correct here.

    The jackknife over answers (Efron & Stein 1981), from the counts alone: with θ₁ and θ₀ the Pass@k without one correct and without one
    wrong answer, (n - 1) / n · (c (θ₁ - θ̄)² + (n - c) (θ₀ - θ̄)²). At k = 1 it is p (1 - p) / (n - 1), p = c / n, without bias. NaN
    unless k < n, since Pass@n takes all answers.
    """
    if k >= n:
        return np.full(len(counts), np.nan)
    without_correct = np.where(counts > 0, pass_at_k(n - 1, np.maximum(counts - 1, 0), k), 0.0)
    without_wrong = np.where(counts < n, pass_at_k(n - 1, np.minimum(counts, n - 1), k), 0.0)
    middle = (counts * without_correct + (n - counts) * without_wrong) / n
    squares = counts * (without_correct - middle) ** 2 + (n - counts) * (without_wrong - middle) ** 2
    variance: Array = (n - 1) / n * squares
    return variance


def _pass_at_k(n: int, c: int, k: int) -> float:
    if not 0 <= c <= n or not 1 <= k <= n:
        raise ValueError(f"expected 0 <= c <= n and 1 <= k <= n, got n={n}, c={c}, k={k}")
    return 1.0 - math.comb(n - c, k) / math.comb(n, k)
