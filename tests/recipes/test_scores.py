from __future__ import annotations

import itertools
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st
from recipes.tiny_models.evaluate import Outcome, summarise
from recipes.tiny_models.scores import bootstrap

from layerlens.metrics.pass_at_k import pass_at_k

shares = st.lists(st.floats(0, 1), min_size=1, max_size=30)


def test_pass_at_k_is_the_share_of_subsets_with_a_right_answer() -> None:
    for n in range(1, 7):
        for c, k in itertools.product(range(n + 1), range(1, n + 1)):
            subsets = list(itertools.combinations([True] * c + [False] * (n - c), k))
            assert pass_at_k(n, c, k) == pytest.approx(sum(map(any, subsets)) / len(subsets))
    assert pass_at_k(16, 4, 4) == pytest.approx(0.728, abs=5e-4)


@pytest.mark.parametrize("nck", [(4, 5, 1), (4, -1, 1), (4, 2, 0), (4, 2, 5)])
def test_impossible_counts_are_refused(nck: tuple[int, int, int]) -> None:
    with pytest.raises(ValueError, match="expected"):
        pass_at_k(*nck)


@given(shares)
def test_interval_holds_the_mean_and_is_reproducible(scores: list[float]) -> None:
    estimate = bootstrap(scores, seed=3)
    assert estimate.mean == pytest.approx(sum(scores) / len(scores))
    if len(scores) == 1:
        assert math.isnan(estimate.low), "one problem says nothing about its own spread"
        assert math.isnan(estimate.high)
        return
    assert min(scores) - 1e-9 <= estimate.low <= estimate.high <= max(scores) + 1e-9
    assert bootstrap(scores, seed=3) == estimate


def test_interval_has_the_known_width() -> None:
    estimate = bootstrap([0.0, 1.0] * 200)
    assert estimate.high - estimate.low == pytest.approx(2 * 1.96 * (0.25 / 400) ** 0.5, rel=0.1)


@given(st.lists(st.tuples(st.sampled_from(["a", "b"]), st.integers(1, 2), st.booleans(), st.integers(0, 4)), min_size=1, max_size=12))
def test_groups_average_to_the_whole(rows: list[tuple[str, int, bool, int]]) -> None:
    summary = summarise([Outcome(kind, difficulty, greedy, right, 4) for kind, difficulty, greedy, right in rows])
    for grouping, name in itertools.product(("by_kind", "by_difficulty"), ("greedy", "avg@4", "pass@4")):
        groups = summary[grouping].values()
        assert sum(g["problems"] for g in groups) == summary["problems"] == len(rows)
        assert sum(g["problems"] * g[name]["mean"] for g in groups) == pytest.approx(len(rows) * summary[name]["mean"])
    assert summary["avg@4"]["mean"] <= summary["pass@4"]["mean"] + 1e-12
