from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from layerlens.metrics import rank_correlation as module
from layerlens.metrics.rank_correlation import rank_correlation, rank_correlations

numbers = st.one_of(st.integers(-3, 3).map(float), st.just(float("nan")))


@given(st.lists(st.tuples(numbers, numbers), max_size=30))
def test_rank_correlation_is_the_pearson_correlation_of_ranks(pairs: list[tuple[float, float]]) -> None:
    a, b = np.array(pairs, float).reshape(-1, 2).T
    frame = pd.DataFrame({"a": a, "b": b}).dropna().rank()
    constant = len(frame) < 2 or frame["a"].nunique() == 1 or frame["b"].nunique() == 1
    expected = np.nan if constant else frame["a"].corr(frame["b"])
    np.testing.assert_allclose(rank_correlation(a, b), expected, atol=1e-12)


def test_rank_correlation_sees_order_alone() -> None:
    a = np.random.default_rng(0).standard_normal(200)
    assert rank_correlation(a, np.exp(3 * a)) == pytest.approx(1)
    assert rank_correlation(a, -(a**3)) == pytest.approx(-1)


def test_of_many_pairs_evenly_spaced_ones_are_ranked(monkeypatch: pytest.MonkeyPatch) -> None:
    a, b = np.random.default_rng(1).standard_normal((2, 101))
    monkeypatch.setattr(module, "MOST_PAIRS", 51)
    assert rank_correlation(a, b) == pytest.approx(pd.Series(a[::2]).rank().corr(pd.Series(b[::2]).rank()))


def test_draws_are_ranked_together_as_one_by_one() -> None:
    draws = np.random.default_rng(0).integers(0, 4, (50, 5)).astype(float)
    draws[7] = 2.0
    other = np.array([0.1, 0.5, 0.5, -3.0, 2.0])
    together = rank_correlations(draws, other)
    np.testing.assert_allclose(together, [rank_correlation(draw, other) for draw in draws], atol=1e-12)
    assert np.isnan(together[7])
