"""Skill: nothing for guessing, everything for certainty, and a first layer with a share of it."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from layerlens.metrics import is_usable, skill
from layerlens.metrics.skill import first_skilled


@given(vocabulary=st.integers(2, 200_000), certain=st.floats(0, 1))
def test_skill_runs_from_guessing_to_certainty(vocabulary: int, certain: float) -> None:
    """A policy that puts `certain` on the right token and spreads the rest is between guessing and ln V."""
    assert skill(-math.log(vocabulary), vocabulary) == pytest.approx(0, abs=1e-12)
    assert skill(0.0, vocabulary) == pytest.approx(math.log(vocabulary))
    mixed = skill(math.log(certain + (1 - certain) / vocabulary), vocabulary)
    assert -1e-9 <= mixed <= math.log(vocabulary) + 1e-9


def test_usable_is_above_guessing_for_sure() -> None:
    assert is_usable(np.array([0.1, 0.0, -0.1, np.nan])).tolist() == [True, False, False, False]


@pytest.mark.parametrize(
    ("values", "of", "layer"),
    [
        ([0.1, 2.0, 6.0, 9.0], 10.0, 3),
        ([5.0, 2.0, 6.0, 9.0], 10.0, 1),
        ([-9.0, 2.0, 4.9, 4.0], 10.0, math.nan),
        ([-9.0, -8.0, -7.0, -300.0], -300.0, math.nan),  # half of less than nothing is nothing
        ([1.0, 2.0], math.nan, math.nan),
    ],
)
def test_first_layer_with_half_the_skill(values: list[float], of: float, layer: float) -> None:
    np.testing.assert_array_equal(first_skilled(np.array([values, values]), np.array([of, of])), [layer, layer])
