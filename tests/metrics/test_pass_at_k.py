from __future__ import annotations

import itertools
from fractions import Fraction
from math import comb

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import layerlens.evaluate
from layerlens.metrics.pass_at_k import avg_at_k, pass_at_k

counts = st.integers(1, 9).flatmap(lambda n: st.tuples(st.just(n), st.integers(0, n), st.integers(1, n)))
flags = st.tuples(st.integers(1, 6), st.integers(1, 9)).flatmap(
    lambda shape: st.lists(st.lists(st.booleans(), min_size=shape[1], max_size=shape[1]), min_size=shape[0], max_size=shape[0])
)


@given(counts)
def test_pass_at_k_is_the_share_of_subsets_with_a_correct_answer(nck: tuple[int, int, int]) -> None:
    n, c, k = nck
    subsets = list(itertools.combinations([True] * c + [False] * (n - c), k))
    assert pass_at_k(n, c, k) == pytest.approx(sum(map(any, subsets)) / len(subsets), abs=1e-15)


@given(counts)
def test_pass_at_k_grows_with_k_and_with_correct_answers(nck: tuple[int, int, int]) -> None:
    n, c, k = nck
    if k < n:
        assert pass_at_k(n, c, k) <= pass_at_k(n, c, k + 1)
    if c < n:
        assert pass_at_k(n, c, k) <= pass_at_k(n, c + 1, k)
    assert pass_at_k(n, c, 1) == pytest.approx(c / n)
    assert pass_at_k(n, c, n) == float(c > 0)


def test_pass_at_4_of_4_correct_among_16_is_not_1() -> None:
    """The helper that comes with the BuPO paper gives 1 whenever c >= k."""
    assert pass_at_k(n=16, c=4, k=4) == pytest.approx(0.728, abs=5e-4)
    assert pass_at_k(16, 4, 4) == pytest.approx(1 - 495 / 1820, abs=1e-15)


def test_pass_at_k_is_exact_for_many_answers() -> None:
    correct = np.arange(301)
    for k in (1, 16, 256):
        exact = [float(1 - Fraction(comb(300 - int(c), k), comb(300, k))) for c in correct]
        np.testing.assert_allclose(pass_at_k(300, correct, k), exact, rtol=0, atol=2.3e-16)


def test_pass_at_k_gives_a_float_for_a_number_and_an_array_for_an_array() -> None:
    assert isinstance(pass_at_k(8, 3, 2), float)
    table = np.array([[0, 1], [1, 8]])
    assert np.asarray(pass_at_k(8, table, 2)).tolist() == [[pass_at_k(8, int(c), 2) for c in row] for row in table]


@pytest.mark.parametrize("nck", [(4, 5, 1), (4, -1, 1), (4, 2, 0), (4, 2, 5)])
def test_pass_at_k_refuses_impossible_counts(nck: tuple[int, int, int]) -> None:
    with pytest.raises(ValueError, match="expected"):
        pass_at_k(*nck)


@given(flags)
def test_avg_at_k_is_the_share_of_correct_answers_and_pass_at_1(rows: list[list[bool]]) -> None:
    correct = np.array(rows)
    n = correct.shape[1]
    for k in range(1, n + 1):
        assert avg_at_k(correct, k).tolist() == [sum(row[:k]) / k for row in rows]
    assert avg_at_k(correct).tolist() == avg_at_k(correct, n).tolist()
    np.testing.assert_allclose(avg_at_k(correct), pass_at_k(n, correct.sum(1), 1), rtol=0, atol=2.3e-16)


@pytest.mark.parametrize("k", [0, 5, -1])
def test_avg_at_k_refuses_an_impossible_k(k: int) -> None:
    with pytest.raises(ValueError, match=r"expected 1 <= k <= 4"):
        avg_at_k(np.ones((2, 4), bool), k)


def test_both_are_public_in_layerlens_evaluate() -> None:
    assert layerlens.evaluate.pass_at_k is pass_at_k
    assert layerlens.evaluate.avg_at_k is avg_at_k
