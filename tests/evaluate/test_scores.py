from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from layerlens.evaluate import Estimate, avg_at_k, pass_table
from layerlens.evaluate.scores import estimate_mean, powers_of_two
from layerlens.metrics.pass_at_k import pass_at_k

shares = st.lists(st.floats(0, 1), min_size=1, max_size=30).map(np.array)
flags = st.tuples(st.integers(1, 6), st.integers(1, 9)).flatmap(
    lambda shape: st.lists(st.lists(st.booleans(), min_size=shape[1], max_size=shape[1]), min_size=shape[0], max_size=shape[0])
)


@given(shares)
def test_estimate_mean_lies_in_its_interval_and_is_reproducible(scores: np.ndarray) -> None:
    estimate = estimate_mean(scores, seed=3)
    assert estimate.mean == pytest.approx(scores.sum() / len(scores))
    if len(scores) == 1:
        assert math.isnan(estimate.low), "one problem says nothing about the spread between problems"
        assert math.isnan(estimate.high)
        return
    assert 0 <= estimate.low <= estimate.mean + 1e-9
    assert estimate.mean - 1e-9 <= estimate.high <= 1
    assert estimate_mean(scores, seed=3) == estimate


def test_estimate_mean_has_the_known_width() -> None:
    estimate = estimate_mean(np.array([0.0, 1.0] * 200))
    assert estimate.high - estimate.low == pytest.approx(2 * 1.96 * (0.25 / 400) ** 0.5, rel=0.1)


def test_estimate_mean_refuses_no_problems() -> None:
    with pytest.raises(ValueError, match="at least one problem"):
        estimate_mean(np.array([]))


def test_estimate_in_json_has_none_for_a_missing_end() -> None:
    assert Estimate(0.5, 0.25, 0.75).to_json() == {"mean": 0.5, "low": 0.25, "high": 0.75}
    assert estimate_mean(np.array([0.5])).to_json() == {"mean": 0.5, "low": None, "high": None}


def test_pass_table_has_powers_of_two_to_256_of_300_answers() -> None:
    assert pass_table(np.ones((2, 300), bool), resamples=2)["k"].tolist() == [1, 2, 4, 8, 16, 32, 64, 128, 256]


@given(flags)
def test_pass_table_starts_with_avg_at_k_and_grows(rows: list[list[bool]]) -> None:
    correct = np.array(rows)
    table = pass_table(correct, resamples=20)
    assert table["k"].tolist() == powers_of_two(correct.shape[1])
    assert table["mean"].iloc[0] == pytest.approx(correct.mean())
    assert table["mean"].iloc[0] == pytest.approx(avg_at_k(correct).mean())
    assert (np.diff(table["mean"]) >= -1e-12).all()
    for k, mean in zip(table["k"], table["mean"], strict=True):
        assert mean == pytest.approx(np.mean([pass_at_k(correct.shape[1], sum(row), int(k)) for row in rows]))


def test_pass_table_takes_its_intervals_over_problems() -> None:
    """Half of the problems are solved always, half never: the width is that of a coin thrown once per problem, whatever K."""
    correct = np.repeat([[True], [False]] * 50, 64, axis=1)
    row = pass_table(correct, [1]).iloc[0]
    assert row["high"] - row["low"] == pytest.approx(2 * 1.96 * 0.5 / 10, rel=0.1)
    wide, narrow = (pass_table(correct, [4], level=level).iloc[0] for level in (0.95, 0.5))
    assert wide["low"] < narrow["low"] < narrow["mean"] < narrow["high"] < wide["high"]
    assert pass_table(correct[:1], [1])[["low", "high"]].isna().all(axis=None)
