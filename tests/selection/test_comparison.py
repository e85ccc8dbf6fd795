"""Runs side by side: one row each, intervals around their numbers, and no comparison of what does not compare."""

from __future__ import annotations

import numpy as np
import pytest

import layerlens as ll
from layerlens.errors import SelectionError
from layerlens.metrics import abruptness, convergence_layer, effective_depth
from tests.support.synthetic_runs import make_run

FEW = {"resamples": 300}
MEASURES = ("convergence_layer", "convergence_depth", "abruptness", "effective_depth", "exploration_end", "integration_end")
QWEN = [0.6, 0.5, 0.4, 0.02, -0.02, 0.01, -0.5, -1.0, -1.6, -1.2]
LLAMA = [*[0.05] * 11, -3.3]
RUNS = [make_run(QWEN, name="qwen-a", seed=1), make_run(LLAMA, name="llama-b", seed=2, samples=20)]


def test_one_row_per_run_with_the_measures_of_its_mean_curve() -> None:
    table = ll.compare(RUNS, **FEW)
    assert table["model"].tolist() == ["qwen-a", "llama-b"]
    assert table["architecture"].tolist() == ["qwen", "llama"]
    assert table["layers"].tolist() == [10, 12]
    assert table["samples"].tolist() == [12, 20]
    assert set(table["norm"]) == {"none"}
    for (_, row), run in zip(table.iterrows(), RUNS, strict=True):
        curve = run.mean("entropy", resamples=2)["mean"].sel(site="resid_post").values
        np.testing.assert_allclose(row["convergence_layer"], convergence_layer(curve))
        np.testing.assert_allclose(row["convergence_depth"], row["convergence_layer"] / run.n_layers)
        np.testing.assert_allclose(row["abruptness"], abruptness(curve))
        np.testing.assert_allclose(row["effective_depth"], effective_depth(curve))
        choice = ll.select_layer(run, **FEW)
        assert row["chosen_layer"] == choice.layer
        assert row["chosen_depth"] == choice.layer / run.n_layers
        assert row["chosen_frequency"] == choice.frequency
        assert row["rule"] == "boundary"
        assert row["exploration_end"] == choice.phases["exploration"][1]
    assert table.loc[0, "integration_end"] == 6
    assert np.isnan(table.loc[1, "integration_end"]), "no integration phase"
    assert table.loc[1, "abruptness"] > 0.9 > table.loc[0, "abruptness"], "the paper: the Llama family converges at the very end"


def test_every_interval_contains_its_point() -> None:
    rng = np.random.default_rng(0)
    runs = [make_run(rng.normal(0, 0.4, 9) - 0.1, noise=0.1, seed=seed, samples=15, name=f"m{seed}") for seed in range(6)]
    table = ll.compare([*RUNS, *runs], **FEW)
    for name in MEASURES:
        low, point, high = (table[column].to_numpy(float) for column in (f"{name}_low", name, f"{name}_high"))
        known = ~np.isnan(point) & ~np.isnan(low)
        assert (low[known] <= point[known] + 1e-9).all(), name
        assert (point[known] <= high[known] + 1e-9).all(), name
        assert (np.isnan(low) == np.isnan(high)).all()


def test_levels_and_weights() -> None:
    narrow, wide = (ll.compare(RUNS, level=level, **FEW) for level in (0.5, 0.99))
    assert (
        wide["effective_depth_high"] - wide["effective_depth_low"] >= narrow["effective_depth_high"] - narrow["effective_depth_low"]
    ).all()
    tokens = ll.compare(RUNS, over="token", rows="all", **FEW)
    assert tokens["effective_depth"].tolist() != wide["effective_depth"].tolist()
    other = ll.compare(RUNS, rule="entropy_drop", **FEW)
    assert other["chosen_layer"].tolist() == [ll.select_layer(run, "entropy_drop", **FEW).layer for run in RUNS]


def test_one_sample_has_points_and_no_intervals() -> None:
    table = ll.compare([make_run(QWEN, samples=1)], **FEW)
    assert np.isnan(table["chosen_frequency"].item())
    assert table["effective_depth"].notna().all()
    assert table[[f"{name}_low" for name in MEASURES]].isna().all(axis=None)


def test_a_run_without_a_turn_has_no_layer() -> None:
    table = ll.compare([make_run([0.5] * 6)], **FEW)
    assert table[["chosen_layer", "chosen_depth", "convergence_layer"]].isna().all(axis=None)
    assert table["chosen_frequency"].item() == 1.0


def test_what_does_not_compare_is_refused() -> None:
    with pytest.raises(SelectionError, match="mix the norm conventions final and none"):
        ll.compare([RUNS[0], make_run(QWEN, norm="final")])
    with pytest.raises(SelectionError, match="no run to compare"):
        ll.compare([])
