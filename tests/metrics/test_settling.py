"""Depths at which tokens settle, against their definitions written out."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from layerlens.metrics.settling import agreement_depth, settles_deep, settling_depth


@given(arrays.arrays(np.float32, st.tuples(st.integers(0, 5), st.integers(1, 9)), elements=st.sampled_from([0.0, 0.3, 0.5, 0.51, 1.0])))
def test_settling_depth_is_the_first_layer_whose_smallest_divergence_so_far_is_at_most_the_threshold(js: np.ndarray) -> None:
    for row, depth in zip(js, settling_depth(js), strict=True):
        layers = [layer for layer in range(1, len(row) + 1) if min(row[:layer]) <= 0.5]
        assert depth == layers[0] if layers else math.isnan(depth)


@given(arrays.arrays(np.int8, st.tuples(st.integers(0, 5), st.integers(1, 9)), elements=st.integers(0, 1)))
def test_agreement_depth_is_the_first_layer_from_which_all_agree(agrees: np.ndarray) -> None:
    for row, depth in zip(agrees, agreement_depth(agrees), strict=True):
        layers = [layer for layer in range(1, len(row) + 1) if all(row[layer - 1 :])]
        assert depth == layers[0] if layers else math.isnan(depth)


@pytest.mark.parametrize("percent", [50, 80, 85, 90, 100])
def test_deep_layers_are_those_from_the_share_on_at_every_depth(percent: int) -> None:
    for n_layers in range(1, 101):
        first = math.ceil(Fraction(percent, 100) * n_layers)
        depth = np.arange(1.0, n_layers + 1)
        np.testing.assert_array_equal(settles_deep(depth, n_layers, percent / 100), depth >= first)
    assert not settles_deep(np.array([np.nan]), 12).any()
