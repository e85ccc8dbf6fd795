"""Means over answers and over pairs of answers."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from layerlens.train.monitor_metrics import mean_per_pair, mean_per_problem


@given(st.integers(1, 5), st.integers(2, 4), st.integers(0, 99))
def test_mean_per_problem_and_per_pair_match_plain_means(problems: int, repeats: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    values = rng.normal(size=problems * repeats)
    groups = np.arange(len(values)).reshape(repeats, problems).T
    assert mean_per_problem("x", groups, values)["x"] == pytest.approx(values.mean())
    table = rng.normal(size=(len(values), len(values)))
    table[rng.random(table.shape) < 0.3] = np.nan
    pairs = [table[a, b] for group in groups for place, a in enumerate(group) for b in group[place + 1 :]]
    known = [value for value in pairs if not np.isnan(value)]
    found = mean_per_pair("x", groups, lambda a, b: float(table[a, b]))["x"]
    assert found == (pytest.approx(np.mean(known)) if known else None)
