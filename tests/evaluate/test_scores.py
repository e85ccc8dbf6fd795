from __future__ import annotations

import itertools
from fractions import Fraction
from math import comb

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from layerlens.evaluate import avg_at_k, pass_at_k, pass_table
from layerlens.evaluate.scores import powers_of_two

counts = st.integers(1, 9).flatmap(lambda n: st.tuples(st.just(n), st.integers(0, n), st.integers(1, n)))
flags = st.tuples(st.integers(1, 6), st.integers(1, 9)).flatmap(
    lambda shape: st.lists(st.lists(st.booleans(), min_size=shape[1], max_size=shape[1]), min_size=shape[0], max_size=shape[0])
)


@given(counts)
def test_it_is_the_share_of_subsets_with_a_right_answer(nck: tuple[int, int, int]) -> None:
    n, c, k = nck
    subsets = list(itertools.combinations([True] * c + [False] * (n - c), k))
    assert pass_at_k(n, c, k) == pytest.approx(sum(map(any, subsets)) / len(subsets), abs=1e-15)


@given(counts)
def test_it_grows_with_k_and_with_right_answers(nck: tuple[int, int, int]) -> None:
    n, c, k = nck
    if k < n:
        assert pass_at_k(n, c, k) <= pass_at_k(n, c, k + 1)
    if c < n:
        assert pass_at_k(n, c, k) <= pass_at_k(n, c + 1, k)
    assert pass_at_k(n, c, 1) == pytest.approx(c / n)
    assert pass_at_k(n, c, n) == float(c > 0)


def test_the_number_of_the_issue() -> None:
    assert pass_at_k(n=16, c=4, k=4) == pytest.approx(0.728, abs=5e-4)
    assert pass_at_k(16, 4, 4) == pytest.approx(1 - 495 / 1820, abs=1e-15)


def test_it_is_exact_for_many_samples() -> None:
    right = np.arange(301)
    for k in (1, 16, 256):
        exact = [float(1 - Fraction(comb(300 - int(c), k), comb(300, k))) for c in right]
        np.testing.assert_allclose(pass_at_k(300, right, k), exact, rtol=0, atol=2.3e-16)


def test_k_goes_in_powers_of_two_to_256_of_300_samples() -> None:
    assert pass_table(np.ones((2, 300), bool), resamples=2)["k"].tolist() == [1, 2, 4, 8, 16, 32, 64, 128, 256]


def test_a_number_for_a_number_and_an_array_for_an_array() -> None:
    assert isinstance(pass_at_k(8, 3, 2), float)
    table = np.array([[0, 1], [1, 8]])
    assert np.asarray(pass_at_k(8, table, 2)).tolist() == [[pass_at_k(8, int(c), 2) for c in row] for row in table]


@pytest.mark.parametrize("nck", [(4, 5, 1), (4, -1, 1), (4, 2, 0), (4, 2, 5)])
def test_impossible_counts_are_refused(nck: tuple[int, int, int]) -> None:
    with pytest.raises(ValueError, match="expected"):
        pass_at_k(*nck)


@given(flags)
def test_pass_at_1_is_avg_at_k_is_the_mean(rows: list[list[bool]]) -> None:
    correct = np.array(rows)
    table = pass_table(correct, resamples=20)
    assert table["k"].tolist() == powers_of_two(correct.shape[1])
    assert table["mean"].iloc[0] == pytest.approx(correct.mean())
    np.testing.assert_allclose(avg_at_k(correct), correct.mean(1))
    assert avg_at_k(correct, 1).tolist() == [float(row[0]) for row in rows]
    assert (np.diff(table["mean"]) >= -1e-12).all()


def test_intervals_are_over_problems() -> None:
    """Half of the problems are solved always, half never: the width is that of a coin thrown once per problem, whatever K."""
    correct = np.repeat([[True], [False]] * 50, 64, axis=1)
    row = pass_table(correct, [1]).iloc[0]
    assert row["high"] - row["low"] == pytest.approx(2 * 1.96 * 0.5 / 10, rel=0.1)
    wide, narrow = (pass_table(correct, [4], level=level).iloc[0] for level in (0.95, 0.5))
    assert wide["low"] < narrow["low"] < narrow["mean"] < narrow["high"] < wide["high"]
    assert pass_table(correct[:1], [1])[["low", "high"]].isna().all(axis=None)
