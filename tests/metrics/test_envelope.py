"""The envelope and what is read off it, on curves whose answer is known, and laws that hold for any."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from layerlens.metrics import late_share, settle_depth, upper_envelope
from layerlens.metrics.envelope import first_settled


def curve(*values: float) -> np.ndarray:
    return np.array(values, dtype=np.float64)


curves = arrays(np.float64, st.integers(2, 12), elements=st.floats(0, 50)).map(lambda values: np.append(values, 0.0))


@given(distance=curves)
def test_the_envelope_never_rises_and_lies_on_the_curve_or_above(distance: np.ndarray) -> None:
    envelope = upper_envelope(distance)
    assert (np.diff(envelope) <= 0).all()
    assert (envelope >= distance).all()
    assert envelope[0] == distance.max()
    np.testing.assert_array_equal(upper_envelope(envelope), envelope)


@given(distance=curves, scale=st.sampled_from([0.25, 4.0]))
def test_measures_have_no_unit_and_lie_between_0_and_1(distance: np.ndarray, scale: float) -> None:
    for measure in (late_share, settle_depth):
        value = measure(distance)
        assert np.isnan(value) == (distance.max() == 0)
        assert np.isnan(value) or 0 <= value <= 1
        np.testing.assert_allclose(measure(distance * scale), value)
    layer, depth = first_settled(distance), settle_depth(distance)
    if distance.max() > 0:
        assert layer - 1 < depth * (len(distance) - 1) + 1e-9 <= layer + 2e-9, "the first layer at or above that depth"


@given(distance=curves)
def test_a_bump_below_what_is_still_to_come_changes_nothing(distance: np.ndarray) -> None:
    bumped = np.minimum(upper_envelope(distance), distance + 0.5)
    for measure in (late_share, settle_depth, first_settled):
        np.testing.assert_array_equal(measure(bumped), measure(distance))


@pytest.mark.parametrize(
    ("distance", "late", "depth", "layer"),
    [
        (curve(*np.linspace(10, 0, 11)), 0.1, 0.9, 9),  # falls steadily
        (curve(*[10.0] * 10, 0), 1.0, 0.99, 10),  # all at the end
        (curve(10, *[0.0] * 10), 0.0, 0.09, 1),  # all at the start
        (curve(4, 8, 2, 4, 0, 0, 0, 0, 0, 0, 0), 0.0, 0.38, 4),  # M(0) is the largest of all, 8
        (curve(10, 0), 0.1, 0.9, 1),  # between layers it is interpolated
        (curve(0, 0, 0), math.nan, math.nan, math.nan),
        (curve(np.nan, 1, 0), math.nan, math.nan, math.nan),
    ],
)
def test_known_curves(distance: np.ndarray, late: float, depth: float, layer: float) -> None:
    np.testing.assert_allclose(late_share(distance), late, atol=1e-12)
    np.testing.assert_allclose(settle_depth(distance), depth, atol=1e-12)
    stack = np.stack([distance, distance])
    np.testing.assert_allclose(late_share(stack), [late, late], atol=1e-12)
    if layer == layer:
        assert first_settled(distance) == layer


def test_a_curve_that_stays_up_does_not_settle() -> None:
    """As under norm none, where the last layer's policy is not the final policy."""
    assert np.isnan(settle_depth(curve(10, 8, 5)))
    assert np.isnan(first_settled(curve(10, 8, 5)))
    assert late_share(curve(10, 8, 5)) == pytest.approx(0.56)
