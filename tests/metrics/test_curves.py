"""What is computed of curves before they are drawn."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from layerlens.metrics.curves import phase_numbers, quantile_bands, shares_of_maximum, smoothed, smoothing_window


def test_shares_of_maximum_divides_curve_and_interval_by_one_number() -> None:
    mean, low, high = (np.array(ends) for ends in ([1.0, 4.0, np.nan], [0.5, 3.0, np.nan], [2.0, 6.0, np.nan]))
    for share, values in zip(shares_of_maximum(mean, low, high), (mean, low, high), strict=True):
        np.testing.assert_array_equal(share, values / 4.0)


def test_quantile_bands_are_the_quantiles_of_the_tokens_that_have_a_value() -> None:
    values = np.random.default_rng(1).normal(size=(50, 3))
    values[:20, 1], values[:, 2] = np.nan, np.nan
    median, (outer, inner) = quantile_bands(values, [(0.05, 0.95), (0.25, 0.75)])
    for layer, tokens in ((0, values[:, 0]), (1, values[20:, 1])):
        assert median[layer] == np.median(tokens)
        np.testing.assert_allclose(outer[:, layer], np.quantile(tokens, [0.05, 0.95]), rtol=1e-15)
        np.testing.assert_allclose(inner[:, layer], np.quantile(tokens, [0.25, 0.75]), rtol=1e-15)
    assert np.isnan([median[2], *outer[:, 2], *inner[:, 2]]).all()


@pytest.mark.parametrize(("entries", "window"), [(1, 1), (19, 1), (20, 5), (100, 5), (119, 5), (120, 7), (300, 15), (1000, 51)])
def test_smoothing_window(entries: int, window: int) -> None:
    assert smoothing_window(entries) == window


@given(st.integers(1, 60), st.integers(0, 4).map(lambda half: 2 * half + 1), st.lists(st.integers(1, 60), max_size=3), st.integers(0, 99))
def test_smoothed_is_the_mean_of_the_neighbours_of_one_phase(entries: int, window: int, ends: list[int], seed: int) -> None:
    values = np.random.default_rng(seed).normal(size=entries)
    phases = phase_numbers(np.arange(1, entries + 1), sorted(ends))
    near = np.abs(np.arange(entries)[:, None] - np.arange(entries)) <= window // 2
    together = near & (phases[:, None] == phases)
    np.testing.assert_allclose(smoothed(values, window, phases), together @ values / together.sum(1), rtol=1e-9, atol=1e-12)


def test_smoothed_does_not_cross_the_end_of_a_phase() -> None:
    values = np.array([0.0] * 10 + [1.0] * 10)
    steps = np.arange(1, 21)
    np.testing.assert_array_equal(smoothed(values, 5, phase_numbers(steps, [10])), values)
    assert 0 < smoothed(values, 5, phase_numbers(steps, []))[9] < 1


def test_smoothed_leaves_out_missing_entries() -> None:
    np.testing.assert_array_equal(smoothed(np.array([1.0, np.nan, 3.0]), 3, np.zeros(3, np.int64)), [1.0, 2.0, 3.0])


def test_phase_numbers_end_with_the_last_step_of_each_phase() -> None:
    assert phase_numbers(np.array([1, 9, 10, 11, 20, 21]), [10, 20]).tolist() == [0, 0, 0, 1, 1, 2]
