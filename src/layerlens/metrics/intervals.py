"""Means over samples and their bootstrap: the one source of every interval (docs/definitions.md, "Means and intervals").

Tokens of one response, and answers to one problem, are not independent, so problems are resampled (Efron 1979; with several answers
each, the cluster bootstrap of Davison & Hinkley 1997, section 3.8). The percentile interval of n problems is too narrow by
√((n-1)/n), the bias of the plug-in variance, and by z / t, the normal in place of Student's distribution (Hesterberg 2015, "What
Teachers Should Know About the Bootstrap", section 4.1). `interval` puts both factors back.
"""

from __future__ import annotations

import math
from statistics import NormalDist
from typing import Literal

import numpy as np
from jaxtyping import Float, Int
from scipy.special import stdtrit  # the inverse of Student's distribution function

RESAMPLES = 2000
LEVEL = 0.95
DRAWN_AT_ONCE = 2**20
"""Numbers of one block of draws, resamples × problems, 8 MiB; 2,000 resamples of 20,000 problems at once would take 610."""
FEWEST_FOR_LAYERS = 4
"""Fewer problems than this give no interval of a layer: 2 or 3 have 3 or 10 different resamples."""

Array = np.ndarray


def bootstrap_means(
    sums: Float[Array, "samples *rest"],
    counts: Float[Array, "samples *rest"],
    resamples: int = RESAMPLES,
    seed: int = 0,
    problems: Int[Array, " samples"] | None = None,
) -> tuple[Float[Array, "*rest"], Float[Array, "resamples *rest"]]:
    """Σ sums / Σ counts over all samples, and over `resamples` draws of the same number of problems with replacement.

    For a mean of per-sample means `counts` is 0 or 1; for a mean over tokens it is the number of tokens. If nothing is counted
    the mean is NaN. `problems` gives the number of each sample's problem; by default every sample is a problem of its own. A draw
    takes a problem with all its samples. With fewer than two problems the resamples are NaN: one problem says nothing about the
    spread between problems.
    """
    if problems is not None:
        sums, counts = (_sum_by(values, problems) for values in (sums, counts))
    counted = counts.reshape(len(counts), -1).any(axis=1)
    if not counted.all():  # a problem without rows to count would only thin the resamples
        sums, counts = sums[counted], counts[counted]
    n = len(sums)
    with np.errstate(invalid="ignore", divide="ignore"):
        point = np.asarray(sums.sum(0) / counts.sum(0))
        if n < 2:
            return point, np.full((resamples, *point.shape), np.nan)
        generator, block = np.random.default_rng(seed), max(1, DRAWN_AT_ONCE // n)
        sums, counts = sums.reshape(n, -1), counts.reshape(n, -1)
        means = np.empty((resamples, point.size))
        for start in range(0, resamples, block):
            drawn = generator.multinomial(n, np.full(n, 1 / n), size=min(block, resamples - start)).astype(np.float64)
            means[start : start + block] = (drawn @ sums) / (drawn @ counts)
    return point, means.reshape(resamples, *point.shape)


def interval(
    values: Float[Array, "resamples *rest"],
    point: Float[Array, "*rest"],
    n: int,
    level: float = LEVEL,
    *,
    layers: bool = False,
    bounds: tuple[float, float] = (-math.inf, math.inf),
) -> tuple[Float[Array, "*rest"], Float[Array, "*rest"]]:
    """The interval of a quantity that was computed on every resample of `n` problems and, as `point`, on all of them.

    The percentiles of the resamples, moved away from the point by `widening(n, level)`. For `layers`, percentiles that lie further
    out by the same factor (Hesterberg's expanded percentiles), taken without interpolation, so that both ends are layers that
    resamples gave; they need `FEWEST_FOR_LAYERS` problems.

    Resamples in which the quantity does not exist (NaN) are left out: say beside such an interval in what `share_existing` of the
    resamples it does. Both ends are NaN if n is below 2, if no resample has the quantity, or if it does not exist on all problems
    (there is then nothing to move away from; layers have their percentiles still).

    Args:
        values, point: the quantity on each resample, and on all problems.
        n: number of problems that were resampled.
        level: share of repeated data sets whose interval is to hold the truth, between 0 and 1.
        layers: whether values are layers (whole numbers, or these divided by the number of layers).
        bounds: the range of the quantity; no end lies outside it.
    """
    nothing = np.isnan(values).all(axis=0)
    if n < (FEWEST_FOR_LAYERS if layers else 2) or nothing.all():
        return np.full(np.shape(point), np.nan), np.full(np.shape(point), np.nan)
    factor = widening(n, level)
    tail = NormalDist().cdf(-_normal(level) * factor) if layers else (1 - level) / 2
    ends = _quantiles(np.where(nothing, 0.0, values), [tail, 1 - tail], "inverted_cdf" if layers else "linear")
    ends = np.where(nothing, np.nan, ends if layers else point + factor * (ends - point)).clip(*bounds)
    return ends[0, ...], ends[1, ...]


def share_existing(values: Float[Array, "resamples *rest"]) -> Float[Array, "*rest"]:
    """The share of resamples in which a quantity exists, which is to say is not NaN."""
    share: Array = np.asarray(1 - np.isnan(values).mean(axis=0))
    return share


def constant_bounds(value: float, n: int, level: float = LEVEL, bounds: tuple[float, float] = (0.0, 1.0)) -> tuple[float, float]:
    """Bounds of a population's mean if all n problems drawn from it have the same value, when resamples show no spread at all.

    With q the share of the population that has the value, n of n have it with probability qⁿ, so q ≥ (1 - level)^(1/n) at this
    level. The rest of the population can lie anywhere in `bounds`. At 0 and 1 this is the "rule of three" (Hanley & Lippman-Hand
    1983) before its approximation 3 / n. NaN for n below 2.
    """
    if n < 2:
        return math.nan, math.nan
    share = (1 - level) ** (1 / n)
    return share * value + (1 - share) * bounds[0], share * value + (1 - share) * bounds[1]


def difference_bounds(bounds: tuple[float, float]) -> tuple[float, float]:
    """The range of the difference of two quantities that both lie within `bounds`."""
    low, high = bounds
    return low - high, high - low


def widening(n: int, level: float = LEVEL) -> float:
    """√(n / (n - 1)) · t / z: by how much the percentile interval of n ≥ 2 problems is too narrow; 1.29 at n = 8, 1.04 at 48."""
    return math.sqrt(n / (n - 1)) * float(stdtrit(n - 1, (1 + level) / 2)) / _normal(level)


def _normal(level: float) -> float:
    """The z below which |Z| lies with probability `level`, Z standard normal."""
    return NormalDist().inv_cdf((1 + level) / 2)


def _sum_by(values: Float[Array, "samples *rest"], problems: Int[Array, " samples"]) -> Float[Array, "problems *rest"]:
    """Sums over the samples of each problem, problems in the order of their numbers."""
    numbers, place = np.unique(problems, return_inverse=True)
    total = np.zeros((len(numbers), *values.shape[1:]))
    np.add.at(total, place, values)
    return total


def _quantiles(
    values: Float[Array, "resamples *rest"], shares: list[float], method: Literal["linear", "inverted_cdf"]
) -> Float[Array, "2 *rest"]:
    """Quantiles over resamples, NaN left out; every column has a value."""
    quantile = np.nanquantile if np.isnan(values).any() else np.quantile
    ends: Array = quantile(values, shares, axis=0, method=method)
    return ends
