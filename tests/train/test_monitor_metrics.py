"""Means over answers and over pairs of answers, their intervals, and their change since the start."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from layerlens.metrics.intervals import bootstrap_means, interval
from layerlens.results.training_log import CHANGE, HIGH, LOW
from layerlens.train.monitor_metrics import mean_per_pair, mean_per_problem
from layerlens.train.probe_means import ProbeMean, load_means, save_means, with_intervals


@given(st.integers(1, 5), st.integers(2, 4), st.integers(0, 99))
def test_mean_per_problem_and_per_pair_match_plain_means(problems: int, repeats: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    values = rng.normal(size=problems * repeats)
    groups = np.arange(len(values)).reshape(repeats, problems).T
    table = rng.normal(size=(len(values), len(values)))
    table[rng.random(table.shape) < 0.3] = np.nan
    row = with_intervals({"x": mean_per_problem(groups, values), "y": mean_per_pair(groups, lambda a, b: float(table[a, b]))}, {})
    assert row["x"] == pytest.approx(values.mean())
    pairs = [table[a, b] for group in groups for place, a in enumerate(group) for b in group[place + 1 :]]
    known = [value for value in pairs if not np.isnan(value)]
    assert row["y"] == (pytest.approx(np.mean(known)) if known else None)
    assert not any(CHANGE in name for name in row), "nothing to compare with"


def test_change_since_the_start_is_that_of_paired_problems() -> None:
    """Problems differ far more than a problem changes: the paired interval is narrow where both means' intervals overlap."""
    rng = np.random.default_rng(0)
    before = rng.normal(0, 5, 16)
    after = before - 0.3 + rng.normal(0, 0.1, 16)
    row = with_intervals({"x": ProbeMean(after, np.ones(16))}, {"x": ProbeMean(before, np.ones(16))})
    point, draws = bootstrap_means(after - before, np.ones(16))
    low, high = interval(draws, point, 16)
    assert (row["x" + CHANGE], row["x" + CHANGE + LOW], row["x" + CHANGE + HIGH]) == pytest.approx(
        (float(point), float(low), float(high)), rel=1e-6
    )
    assert high < 0, "the change is sure"
    assert row["x" + LOW] < before.mean() < row["x" + HIGH], "though the start lies in the interval of the mean"


def test_perplexity_is_the_exponential_of_its_logarithm_and_has_no_change() -> None:
    mean = ProbeMean(np.array([1.0, 2.0, 4.0, 3.0]), np.ones(4), (0.0, np.inf))
    row = with_intervals({"log_perplexity": mean}, {"log_perplexity": mean})
    for end in ("", LOW, HIGH):
        assert row["perplexity" + end] == pytest.approx(np.exp(row["log_perplexity" + end]))
        assert row["log_perplexity" + CHANGE + end] == 0
        assert "perplexity" + CHANGE + end not in row


def test_means_of_the_start_are_read_as_they_were_written(tmp_path: Path) -> None:
    means = {"entropy/layer_1": ProbeMean(np.array([1.0, 2.0]), np.array([1.0, 0.0]), (0.0, 9.0))}
    save_means(tmp_path / "start.npz", means)
    [(name, kept)] = load_means(tmp_path / "start.npz").items()
    assert name == "entropy/layer_1"
    np.testing.assert_array_equal([kept.sums, kept.counts], [[1.0, 2.0], [1.0, 0.0]])
    assert load_means(tmp_path / "none.npz") == {}
