"""Pearson's r from means, against numpy."""

from __future__ import annotations

import numpy as np

from layerlens.metrics.correlation import correlation_of_means, moments


def test_correlation_of_means_is_pearsons_r() -> None:
    x, y = np.random.default_rng(0).normal(size=(2, 200))
    y += 0.5 * x
    r = correlation_of_means(moments(x, y).mean(0))
    np.testing.assert_allclose(r, np.corrcoef(x, y)[0, 1], rtol=1e-12)
    stacked = correlation_of_means(np.stack([moments(x, y).mean(0), moments(x, -x).mean(0), moments(x, 0 * y).mean(0)]))
    np.testing.assert_allclose(stacked, [r, -1, np.nan], rtol=1e-12)
