"""What changed between two measurements: differences of means and their intervals."""

from __future__ import annotations

import numpy as np
import pytest

from layerlens.metrics.difference import change_since_first, contains_zero, difference_of_means
from layerlens.metrics.intervals import widening


def test_difference_of_means_is_after_minus_before_with_the_quantiles_of_the_resamples() -> None:
    rng = np.random.default_rng(0)
    before, after = rng.normal(size=(2, 3, 4))
    before_draws, after_draws = rng.normal(size=(2, 500, 3, 4))
    mean, low, high = difference_of_means(before, after, before_draws, after_draws, 9, 0.8)
    np.testing.assert_array_equal(mean, after - before)
    for end, share in ((low, (1 - 0.8) / 2), (high, 1 - (1 - 0.8) / 2)):
        quantile = np.quantile(after_draws - before_draws, share, axis=0)
        np.testing.assert_allclose(end, mean + widening(9, 0.8) * (quantile - mean), rtol=1e-12)


def test_difference_of_means_without_resamples_has_no_interval() -> None:
    _, low, high = difference_of_means(np.zeros(2), np.ones(2), np.full((9, 2), np.nan), np.ones((9, 2)), 1)
    assert np.isnan(low).all()
    assert np.isnan(high).all()


def test_difference_of_means_ends_within_the_range_of_a_difference() -> None:
    draws = np.array([[0.0, 0.4], [1.0, 0.6]] * 50)
    _, low, high = difference_of_means(np.array([0.5, 0.5]), np.array([0.6, 0.5]), 1 - draws, draws, 2, bounds=(0.0, 1.0))
    assert (low[0], high[0]) == (-1, 1)
    assert low[1] == pytest.approx(-high[1])
    assert -1 <= low[1] < -0.2 < 0.2 < high[1] <= 1, "wider than its resamples"


def test_contains_zero_includes_the_ends_and_no_unknown_interval() -> None:
    low, high = np.array([-1.0, 0.0, -1.0, 0.1, -2.0, np.nan]), np.array([1.0, 1.0, 0.0, 1.0, -1.0, np.nan])
    assert contains_zero(low, high).tolist() == [True, True, True, False, False, False]


def test_change_since_first_is_zero_at_the_first() -> None:
    values = np.array([[3.0, 4.0, 1.0], [0.5, 0.5, 2.5]])
    np.testing.assert_array_equal(change_since_first(values), [[0.0, 1.0, -2.0], [0.0, 0.0, 2.0]])
