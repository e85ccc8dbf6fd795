"""Means over samples and their bootstrap: the one source of every interval (docs/definitions.md, "Means and intervals").

Percentile bootstrap over samples (Efron 1979), since the tokens of one response are not independent.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Float

RESAMPLES = 2000
LEVEL = 0.95

Array = np.ndarray


def bootstrap_means(
    sums: Float[Array, "samples *rest"],
    counts: Float[Array, "samples *rest"],
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> tuple[Float[Array, "*rest"], Float[Array, "resamples *rest"]]:
    """Σ sums / Σ counts over all samples, and over `resamples` draws of the same number of samples with replacement.

    For a mean of per-sample means `counts` is 0 or 1; for a mean over tokens it is the number of tokens. If nothing is counted
    the mean is NaN. With fewer than two samples the resamples are NaN: one sample says nothing about its own spread.
    """
    counted = counts.reshape(len(counts), -1).any(axis=1)
    if not counted.all():  # a sample without rows to count would only thin the resamples
        sums, counts = sums[counted], counts[counted]
    n = len(sums)
    with np.errstate(invalid="ignore", divide="ignore"):
        point = np.asarray(sums.sum(0) / counts.sum(0))
        if n < 2:
            return point, np.full((resamples, *point.shape), np.nan)
        draws = np.random.default_rng(seed).multinomial(n, np.full(n, 1 / n), size=resamples).astype(np.float64)
        means = (draws @ sums.reshape(n, -1)) / (draws @ counts.reshape(n, -1))
    return point, means.reshape(resamples, *point.shape)


def interval(values: Float[Array, "resamples *rest"], level: float = LEVEL) -> tuple[Float[Array, "*rest"], Float[Array, "*rest"]]:
    """The percentile interval of resampled values; resamples in which the quantity does not exist (NaN) are left out."""
    tail = (1 - level) / 2
    missing = np.isnan(values)
    if not missing.any():
        ends = np.quantile(values, [tail, 1 - tail], axis=0)
        return ends[0, ...], ends[1, ...]
    nothing = missing.all(axis=0)
    ends = np.where(nothing, np.nan, np.nanquantile(np.where(nothing, 0.0, values), [tail, 1 - tail], axis=0))
    return ends[0, ...], ends[1, ...]
