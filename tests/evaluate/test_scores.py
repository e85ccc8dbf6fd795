from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from layerlens.evaluate import Estimate, avg_at_k, pass_table
from layerlens.evaluate.scores import BoundEstimate, estimate_mean, estimate_over_answers, powers_of_two
from layerlens.metrics.intervals import constant_bounds
from layerlens.metrics.pass_at_k import answer_variance, pass_at_k

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


@given(st.floats(0, 1), st.integers(2, 40))
def test_problems_without_spread_have_bounds_that_are_marked(score: float, problems: int) -> None:
    found = estimate_mean(np.full(problems, score))
    assert isinstance(found, BoundEstimate)
    assert (found.low, found.high) == pytest.approx(constant_bounds(score, problems), abs=1e-9)
    assert found.to_json()["bound"] is True
    assert "bound" not in estimate_mean(np.array([0.0, 1.0])).to_json()


@given(flags.filter(lambda rows: len(rows[0]) > 1))
def test_interval_over_answers_is_exact_from_the_counts(rows: list[list[bool]]) -> None:
    correct = np.array(rows)
    share, answers = correct.mean(1), correct.shape[1]
    found = estimate_over_answers(share.mean(), correct)
    reach = 1.959964 * np.sqrt((share * (1 - share) / (answers - 1)).sum()) / len(rows)
    if reach == 0:
        assert isinstance(found, BoundEstimate)
        reach = 1 - 0.05 ** (1 / correct.size)
    assert found == pytest.approx((share.mean(), max(0, share.mean() - reach), min(1, share.mean() + reach)), abs=1e-6)


@given(st.integers(3, 9), st.integers(0, 99))
def test_variance_over_answers_is_the_jackknife_written_out(n: int, seed: int) -> None:
    """Leave each answer out in turn, and score what is left."""
    correct = np.random.default_rng(seed).random((4, n)) < 0.5
    for k in range(1, n):
        found = answer_variance(n, correct.sum(1), k)
        for row, variance in zip(correct, found, strict=True):
            left = np.array([pass_at_k(n - 1, int(np.delete(row, i).sum()), k) for i in range(n)])
            assert variance == pytest.approx((n - 1) / n * ((left - left.mean()) ** 2).sum(), abs=1e-12)
    assert np.isnan(answer_variance(n, correct.sum(1), n)).all(), "Pass@n takes all answers"


def test_interval_over_answers_covers_the_sets_own_value() -> None:
    """30 problems that stay the same, 16 new answers each: their own Avg@16 and Pass@4 lie inside in about 95% of draws."""
    rng = np.random.default_rng(0)
    chances = rng.beta(0.5, 1.5, 30)
    truths = {1: chances.mean(), 4: (1 - (1 - chances) ** 4).mean()}
    hits: dict[int, list[bool]] = {k: [] for k in truths}
    for _ in range(400):
        correct = rng.random((30, 16)) < chances[:, None]
        for k, truth in truths.items():
            mean = float(np.mean(pass_at_k(16, correct.sum(1), k)))
            _, low, high = estimate_over_answers(mean, correct, k=k)
            hits[k].append(low <= truth <= high)
    assert all(0.92 <= np.mean(found) <= 0.985 for found in hits.values())


def test_interval_over_one_answer_does_not_exist() -> None:
    correct = np.array([[True], [False]])
    assert np.isnan(estimate_over_answers(0.5, correct)[1:]).all()
    assert np.isnan(estimate_over_answers(0.75, np.array([[True, False, True]] * 2), k=3)[1:]).all(), "nor for k = K"
    assert np.isnan(estimate_over_answers(1.0, np.ones((2, 4), bool), k=2)[1:]).all(), "nor without any spread"


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
