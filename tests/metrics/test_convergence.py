"""Convergence measures on curves whose answer is known beforehand."""

from __future__ import annotations

import math

import numpy as np
import pytest

from layerlens.metrics import (
    abruptness,
    convergence_layer,
    effective_depth,
)


def array(*values: float) -> np.ndarray:
    return np.array(values, dtype=np.float64)


@pytest.mark.parametrize(
    ("entropy", "layer"),
    [
        ([10, 8, 4, 0.9, 0.5, 0.1], 3),  # the embedding comes first
        ([10, 0.5, 4, 0.9, 0.5, 0.1], 3),  # a dip that does not last is no convergence
        ([10, 9, 8, 7], math.nan),
        ([10, 9, 8, 0.5], 3),
        ([1, 2, 3, 4], math.nan),  # rising
        ([10, 9, 0.5, 2], math.nan),
        ([10, 9, 1.0, 1.0], math.nan),  # 10% exactly is not under 10%
        ([0.0, 0.0, 0.0], math.nan),
        ([0.5, 10, 0.5, 0.5], 2),
        ([8.5, 0.4, 0.5, 0.3], 1),
        ([5.0], math.nan),
    ],
)
def test_convergence_layer(entropy: list[float], layer: float) -> None:
    got = convergence_layer(array(*entropy))
    assert got == layer or (math.isnan(layer) and np.isnan(got))


@pytest.mark.parametrize(
    ("entropy", "share"),
    [
        ([10, 10, 10, 10, 5, 0], 1.0),
        ([10, 5, 0, 0, 0, 0], 0.0),
        ([10, 8, 6, 4, 2, 0], 0.6),
        ([2, 10, 8, 6, 4, 2], 0.75),  # counted from the maximum, not from the first layer
        ([10, 5, 4, 4, 4, 6], -0.5),  # rises again at the end
        ([1, 2, 3, 4, 5, 6], math.nan),  # never falls
        ([3, 3, 3, 3, 3], math.nan),
        ([9, 5, 4, 1], math.nan),  # no layer before the last three
        ([9, 9, 6, 3, 0], 1.0),
    ],
)
def test_abruptness(entropy: list[float], share: float) -> None:
    np.testing.assert_allclose(abruptness(array(*entropy)), share)


@pytest.mark.parametrize(
    ("entropy", "depth"),
    [([4, 4, 4, 4], 1.0), ([4, 0, 0], 0.25), ([0, 0, 4], 0.25), ([4, 3, 2, 1], 0.625), ([2, 4], 0.75), ([0, 0], math.nan)],
)
def test_effective_depth(entropy: list[float], depth: float) -> None:
    np.testing.assert_allclose(effective_depth(array(*entropy)), depth)


def test_a_bootstrap_of_curves_goes_in_as_it_is() -> None:
    curves = np.random.default_rng(0).random((3, 5, 9)) * np.linspace(5, 0.01, 9)
    for measure in (convergence_layer, abruptness, effective_depth):
        got = measure(curves)
        assert got.shape == (3, 5)
        np.testing.assert_array_equal(got, [[measure(curve) for curve in row] for row in curves])
    broken = array(3, np.nan, 0.1, 0.1)
    assert np.isnan(convergence_layer(broken))
    assert np.isnan(effective_depth(broken))
