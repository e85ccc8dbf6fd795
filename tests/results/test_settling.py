"""Shares of tokens that settle at each layer, and accuracy by deep-thinking ratio."""

from __future__ import annotations

import numpy as np
import pytest

import layerlens as ll
from layerlens.errors import SelectionError
from layerlens.results.settling import FEWEST_IN_BIN, accuracy_by_ratio, settling_shares
from tests.support.thinking_runs import LAYERS, RIGHT, thinking_run


@pytest.fixture(scope="module")
def run() -> ll.Run:
    return thinking_run(copies=6)


def test_shares_count_the_tokens_that_settle_at_each_layer(run: ll.Run) -> None:
    depth, kind, sample = run.values("settling_depth").values, run.data["segment"].values, run.data["sample"].values
    shares = settling_shares(run, over="token")
    assert shares["group"].values.tolist() == ["thinking", "answer"]
    for name in ("thinking", "answer"):
        counted = np.array([(depth[kind == name] == layer).mean() for layer in range(1, LAYERS + 1)])
        np.testing.assert_allclose(shares["mean"].sel(group=name), counted, rtol=1e-12)
    np.testing.assert_allclose(shares["unsettled"], 0, atol=1e-12)
    assert settling_shares(run, rows="all")["group"].values.tolist() == ["prompt", "thinking", "answer"]
    right = np.array(RIGHT * 6)
    by_right = settling_shares(run, right, over="token")
    response = np.isin(kind, ["thinking", "answer"])
    for name, chosen in (("right", right), ("wrong", ~right)):
        counted = [(depth[response & chosen[sample]] == layer).mean() for layer in range(1, LAYERS + 1)]
        np.testing.assert_allclose(by_right["mean"].sel(group=name), counted, rtol=1e-12)
    assert (by_right["low"] <= by_right["mean"]).all()
    assert (by_right["mean"] <= by_right["high"]).all()


def test_accuracy_is_over_bins_of_equally_many_responses_by_ratio(run: ll.Run) -> None:
    right = np.array(RIGHT * 6)
    found = accuracy_by_ratio(run, right)
    ratio = run.sample_means("deep_thinking_ratio").values
    order = ratio.argsort(kind="stable")
    bins = np.array_split(order, 18 // FEWEST_IN_BIN)
    np.testing.assert_allclose(found["mean"], [right[members].mean() for members in bins])
    np.testing.assert_allclose(found["ratio"], [ratio[members].mean() for members in bins])
    np.testing.assert_allclose(found["correlation"], np.corrcoef(ratio, right)[0, 1], rtol=1e-9)
    assert found["correlation_low"] <= found["correlation"] <= found["correlation_high"]
    always = accuracy_by_ratio(run, np.ones(18, bool), segment="thinking")
    assert (always.attrs["samples"], always.attrs["segment"]) == (12, "thinking")
    assert np.isnan(always["correlation"])
    np.testing.assert_array_equal(always["mean"], [1, 1])


def test_right_or_wrong_must_be_said_of_every_sample(run: ll.Run) -> None:
    for measure in (settling_shares, accuracy_by_ratio):
        with pytest.raises(SelectionError, match="one value per sample, 18, got 3"):
            measure(run, np.array(RIGHT))
