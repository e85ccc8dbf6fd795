"""The fit of reward against entropy."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from layerlens.metrics.entropy_fit import reward_entropy_fit


@given(st.floats(-1, 1), st.floats(-1, 1), st.integers(3, 20), st.integers(0, 99))
def test_an_exact_relation_is_found(a: float, b: float, steps: int, seed: int) -> None:
    entropy = np.random.default_rng(seed).uniform(0, 2, steps)
    found = reward_entropy_fit(entropy, b - a * np.exp(entropy))
    assert found[:2] == pytest.approx((a, b), abs=1e-9)
    assert found[2] == pytest.approx(1) or abs(a) < 1e-6


def test_noise_lowers_the_share_and_least_squares_is_numpys() -> None:
    rng = np.random.default_rng(0)
    entropy = rng.uniform(0, 2, 30)
    reward = 0.8 - 0.1 * np.exp(entropy) + 0.1 * rng.standard_normal(30)
    a, b, share = reward_entropy_fit(entropy, reward)
    slope, intercept = np.polyfit(np.exp(entropy), reward, 1)
    assert (-a, b) == pytest.approx((slope, intercept))
    assert share == pytest.approx(np.corrcoef(np.exp(entropy), reward)[0, 1] ** 2)


def test_what_does_not_vary_has_no_fit() -> None:
    assert np.isnan(reward_entropy_fit(np.ones(5), np.arange(5.0))).all()
    assert np.isnan(reward_entropy_fit(np.array([1.0, 2.0]), np.array([0.0, 1.0]))).all()
