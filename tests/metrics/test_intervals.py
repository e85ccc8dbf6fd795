"""Bootstrap intervals: against scipy, against Student's t, and against the truth of simulated data."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from layerlens.metrics.intervals import bootstrap_means, constant_bounds, interval, share_existing, widening


def mean_interval(values: np.ndarray, seed: int = 0, level: float = 0.95, **options: object) -> tuple[float, float]:
    """The interval of the mean of one value per problem."""
    point, draws = bootstrap_means(values, np.ones_like(values), resamples=1000, seed=seed)
    low, high = interval(draws, point, len(values), level, **options)  # type: ignore[arg-type]
    return float(low), float(high)


@pytest.mark.parametrize("n", [5, 30])
@pytest.mark.parametrize("level", [0.5, 0.95])
def test_percentiles_are_those_of_scipy(n: int, level: float) -> None:
    values = np.random.default_rng(n).exponential(size=n)
    point, draws = bootstrap_means(values, np.ones(n), resamples=20_000)
    low, high = (point + (end - point) / widening(n, level) for end in interval(draws, point, n, level))
    rng = np.random.default_rng(1)
    theirs = stats.bootstrap((values,), np.mean, n_resamples=20_000, confidence_level=level, method="percentile", rng=rng)
    known = theirs.confidence_interval
    assert (low, high) == pytest.approx((known.low, known.high), abs=0.04 * (known.high - known.low))


@pytest.mark.parametrize(("n", "share"), [(2, 0.7215), (3, 1.04), (8, 1.0), (30, 1.0)])
def test_interval_is_as_wide_as_students(n: int, share: float) -> None:
    """The percentiles of 2 values end at the data, nearer than 1.96 standard errors; from 8 values on both intervals agree."""
    rng = np.random.default_rng(0)
    ratios = []
    for seed in range(40):
        values = rng.normal(size=n)
        low, high = mean_interval(values, seed)
        ratios.append((high - low) / (2 * stats.t.ppf(0.975, n - 1) * values.std(ddof=1) / math.sqrt(n)))
    assert np.mean(ratios) == pytest.approx(share, abs=0.03)


@pytest.mark.parametrize("n", [2, 4, 8, 40])
def test_interval_covers_what_it_says(n: int) -> None:
    rng = np.random.default_rng(n)
    hits = []
    for seed in range(600):
        low, high = mean_interval(rng.normal(1.0, 2.0, size=n), seed)
        hits.append(low <= 1.0 <= high)
    assert 0.92 <= np.mean(hits) <= 0.975


@given(st.integers(2, 6), st.integers(1, 4), st.integers(0, 99))
def test_answers_that_repeat_each_other_add_nothing(problems: int, answers: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    sums, counts = rng.normal(size=(problems, 3)), rng.integers(1, 5, (problems, 3)).astype(float)
    point, draws = bootstrap_means(sums, counts, 50, seed)
    numbers = np.repeat(np.arange(problems), answers)
    repeated = bootstrap_means(sums.repeat(answers, 0), counts.repeat(answers, 0), 50, seed, numbers)
    np.testing.assert_allclose(repeated[0], point, rtol=1e-9)
    np.testing.assert_allclose(repeated[1], draws, rtol=1e-9, atol=1e-12)


def test_answers_to_one_problem_are_resampled_together() -> None:
    """12 problems with 4 answers each, half of the variance between problems: as independent answers they hold the mean in 3 of 4 sets."""
    rng = np.random.default_rng(3)
    numbers = np.repeat(np.arange(12), 4)
    together, apart = [], []
    for seed in range(400):
        values = rng.normal(size=12)[numbers] + rng.normal(size=48)
        for hits, problems, n in ((together, numbers, 12), (apart, None, 48)):
            point, draws = bootstrap_means(values, np.ones(48), 400, seed, problems)
            low, high = interval(draws, point, n)
            hits.append(float(low) <= 0 <= float(high))
    assert 0.92 <= np.mean(together) <= 0.975
    assert np.mean(apart) < 0.85


def test_draws_in_blocks_are_those_of_one(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    sums, counts = rng.standard_normal((2, 40, 3, 2))
    _, whole = bootstrap_means(sums, counts**2, 300)
    for at_once in (40 * 7, 1):
        monkeypatch.setattr("layerlens.metrics.intervals.DRAWN_AT_ONCE", at_once)
        _, blocks = bootstrap_means(sums, counts**2, 300)
        np.testing.assert_allclose(blocks, whole, rtol=1e-10)


@given(st.lists(st.integers(1, 12), min_size=20, max_size=60), st.integers(4, 60))
def test_interval_of_layers_ends_at_layers(found: list[int], n: int) -> None:
    values = np.array(found, float)
    low, high = interval(values[:, None], values[:1], n, layers=True)
    assert {float(low[0]), float(high[0])} <= set(values)
    tail = 0.5 * (1 - math.erf(1.96 * widening(n) / math.sqrt(2)))
    assert np.mean(values < low[0]) <= tail + 1e-9, "no more of them lie outside than further percentiles leave"
    assert np.mean(values > high[0]) <= tail + 1e-9
    for few in (1, 2, 3):
        assert np.isnan(interval(values[:, None], values[:1], few, layers=True)).all()


def test_interval_of_what_often_does_not_exist() -> None:
    values = np.array([[np.nan, 3.0, np.nan]] * 6 + [[12.0, 4.0, np.nan]] * 4)
    point = np.array([np.nan, 3.4, np.nan])
    low, high = interval(values, point, 8)
    assert np.isnan(low[[0, 2]]).all(), "there is no point to move away from"
    assert low[1] < 3.4 < high[1]
    low, high = interval(values, point, 8, layers=True)
    assert (low[0], high[0]) == (12, 12)
    assert share_existing(values).tolist() == pytest.approx([0.4, 1.0, 0.0])


def test_interval_of_one_problem_does_not_exist() -> None:
    point, draws = bootstrap_means(np.array([2.0]), np.ones(1))
    assert np.isnan(interval(draws, point, 1)).all()


def test_interval_stays_in_its_range() -> None:
    assert mean_interval(np.array([0.0, 1.0]), bounds=(0.0, 1.0)) == (0.0, 1.0)
    low, high = mean_interval(np.array([0.0, 1.0]))
    assert low == pytest.approx(0.5 - 0.5 * widening(2))
    assert high == pytest.approx(0.5 + 0.5 * widening(2))


@given(st.floats(0, 1), st.integers(2, 200), st.floats(0.5, 0.99))
def test_bounds_of_a_constant_hold_unless_the_data_were_too_lucky(value: float, n: int, level: float) -> None:
    """A share q of the population has the value: at the q for which n of n have it with probability 1 - level, the bounds are met."""
    low, high = constant_bounds(value, n, level)
    share = (1 - level) ** (1 / n)
    for elsewhere, bound in ((0.0, low), (1.0, high)):
        assert share * value + (1 - share) * elsewhere == pytest.approx(bound)
    assert 0 <= low <= value <= high <= 1
    assert np.isnan(constant_bounds(value, 1)).all()


def test_bounds_at_all_right_are_the_rule_of_three() -> None:
    assert constant_bounds(1.0, 100)[0] == pytest.approx(1 - 3 / 100, abs=1e-3)
    assert constant_bounds(0.0, 100)[1] == pytest.approx(3 / 100, abs=1e-3)
