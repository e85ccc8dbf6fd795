from __future__ import annotations

import pytest

from layerlens.plots.kit.layer_axis import thinned


@pytest.mark.parametrize(
    ("places", "gap", "expected"),
    [
        (range(1, 13), 1.0, list(range(1, 13))),
        (range(1, 37), 5.0, [1, 5, 10, 15, 20, 25, 30, 36]),
        (range(1, 37), 3.1, [1, 4, 8, 12, 16, 20, 24, 28, 32, 36]),
        ([1, 2, 6, 35, 36], 2.0, [1, 6, 36]),
        ([7], 3.0, [7]),
    ],
)
def test_thinned_keeps_the_first_the_last_and_round_numbers(places, gap, expected):
    assert thinned(list(places), gap) == expected
