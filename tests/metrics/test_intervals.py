"""Bootstrap intervals."""

from __future__ import annotations

import numpy as np


def test_the_interval_covers_what_it_says() -> None:
    """Of many data sets with a known mean, about 95% have it inside (percentile intervals of 40 samples run a little low)."""
    from layerlens.metrics.intervals import bootstrap_means, interval

    rng = np.random.default_rng(0)
    hits = []
    for seed in range(400):
        sums = rng.exponential(1.0, size=(40, 1))
        _, means = bootstrap_means(sums, np.ones_like(sums), resamples=500, seed=seed)
        low, high = interval(means)
        hits.append(low[0] <= 1.0 <= high[0])
    assert 0.90 <= np.mean(hits) <= 0.97
