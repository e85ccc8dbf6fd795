"""Runs side by side: one row each, intervals around their numbers, what separates them, and no comparison of what does not compare."""

from __future__ import annotations

import re
from dataclasses import replace

import numpy as np
import pytest

import layerlens as ll
from layerlens.errors import SelectionError
from layerlens.metrics import abruptness, convergence_layer, effective_depth, late_share, settle_depth
from layerlens.results import Run
from layerlens.selection.comparison import compare_runs
from tests.support.synthetic_runs import make_run

FEW = {"resamples": 300}
SETTLING = ("late_share", "settle_depth", "disagreement_late_share", "disagreement_settle_depth")
PAPERS = ("convergence_layer", "convergence_depth", "abruptness", "effective_depth", "exploration_end", "integration_end")
MEASURES = (*SETTLING, *PAPERS)
QWEN = [0.6, 0.5, 0.4, 0.02, -0.02, 0.01, -0.5, -1.0, -1.6, -1.2]
LLAMA = [*[0.05] * 11, -3.3]
RUNS = [make_run(QWEN, name="qwen-a", seed=1), make_run(LLAMA, name="llama-b", seed=2, samples=20)]


def settling(shape: list[float], name: str, *, samples: int = 12, noise: float = 0.1, seed: int = 0) -> Run:
    """A run of norm final whose mean KL to the final policy, the embedding's first, is `shape`, with noise between samples."""
    run = make_run([0.2] * (len(shape) - 1), norm="final", name=name, samples=samples, seed=seed, start=9.0)
    offset = 1 + noise * np.random.default_rng(seed).standard_normal((samples, 1)).clip(-2, 2)
    sample = run.data["sample"].values
    kl = run.data["kl_to_final"].copy(deep=True)
    kl.loc[{"site": "resid_pre"}] = (offset * shape[:-1])[sample]
    kl.loc[{"site": "resid_post"}] = (offset * shape[1:])[sample]
    return replace(run, data=run.data.assign(kl_to_final=kl))


def bumpy(shape: list[float], name: str, seed: int, samples: int = 12) -> Run:
    """As `settling`, with noise of each layer's own, so that shares differ between samples."""
    run = settling(shape, name, seed=seed, samples=samples)
    noise = 1 + 0.3 * np.random.default_rng(seed).standard_normal((run.n_samples, run.n_layers, 1)).clip(-2, 2)
    return replace(run, data=run.data.assign(kl_to_final=run.data["kl_to_final"] * noise[run.data["sample"].values]))


EARLY, LATE = [8, 4, 2, 1, 0.5, 0.2, 0.1, 0.1, 0.1, 0.1, 0], [8, 8, 7, 7, 6, 6, 5, 5, 4, 3.2, 0]


def test_one_row_per_run_with_the_measures_of_its_mean_curve() -> None:
    table = ll.compare(RUNS, **FEW)
    assert table["model"].tolist() == ["qwen-a", "llama-b"]
    assert table["architecture"].tolist() == ["qwen", "llama"]
    assert table["layers"].tolist() == [10, 12]
    assert table["samples"].tolist() == [12, 20]
    assert set(table["norm"]) == {"none"}
    for (_, row), run in zip(table.iterrows(), RUNS, strict=True):
        mean = run.mean("entropy", resamples=2)["mean"]
        curve = np.append(mean.sel(site="resid_pre").values[0], mean.sel(site="resid_post").values)  # the embedding included
        np.testing.assert_allclose(row["convergence_layer"], convergence_layer(curve))
        np.testing.assert_allclose(row["convergence_depth"], row["convergence_layer"] / run.n_layers)
        np.testing.assert_allclose(row["abruptness"], abruptness(curve))
        np.testing.assert_allclose(row["effective_depth"], effective_depth(curve))
        choice = ll.select_layer(run, **FEW)
        assert row["chosen_layer"] == choice.layer
        assert row["chosen_depth"] == choice.layer / run.n_layers
        assert row["chosen_frequency"] == choice.frequency
        assert row["rule"] == "boundary"
        assert row["usable_layers"] == f"1-{run.n_layers}"
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


@pytest.mark.parametrize("samples", [2, 3])
def test_no_end_of_an_interval_lies_outside_the_range_of_a_share(samples: int) -> None:
    """Intervals of 2 and 3 samples are many times as wide as the resamples: they end at the bounds of a share, and of differences."""
    ends, between = [], []
    for seed in range(6):
        rng = np.random.default_rng(seed)
        shapes = [np.append(rng.exponential(1.0, 6), 0.0).tolist(), np.append(np.full(6, 2.0), 0.0).tolist()]
        runs = [bumpy(shape, name, seed, samples) for name, shape in zip("ab", shapes, strict=True)]
        found = compare_runs(runs, resamples=100)
        assert not (found.table["abruptness_high"] > 1).any()
        ends += [found.table[[f"{name}_low", name, f"{name}_high"]].to_numpy(float) for name in (*SETTLING, "effective_depth")]
        rows = found.differences.set_index("measure").loc[[*SETTLING, "effective_depth"]]
        between.append(rows[["difference_low", "difference_high"]].to_numpy(float))
    shares, differences = np.concatenate(ends), np.concatenate(between)
    assert np.nanmin(shares) == 0, "without bounds some lie below"
    assert np.nanmax(shares) == 1
    assert np.nanmax(abs(differences)) <= 1
    assert (np.diff(shares, axis=1)[~np.isnan(shares).any(axis=1)] >= -1e-9).all(), "the point lies within"


def test_one_sample_has_points_and_no_intervals() -> None:
    table = ll.compare([make_run(QWEN, samples=1)], **FEW)
    assert np.isnan(table["chosen_frequency"].item())
    assert table["effective_depth"].notna().all()
    assert table[[f"{name}_low" for name in MEASURES]].isna().all(axis=None)


def test_a_rule_without_a_layer_leaves_it_empty() -> None:
    table = ll.compare([make_run([-0.5] * 6)], rule="boundary", **FEW)
    assert table[["chosen_layer", "chosen_depth", "exploration_end"]].isna().all(axis=None)
    assert table["chosen_frequency"].item() == 1.0


def test_layers_of_different_rules_are_not_to_be_compared() -> None:
    runs = [settling(EARLY, "early"), settling(LATE, "late")]
    (note,) = ll.compare(runs, **FEW).attrs["notes"]
    assert "come from different rules (settled for early, skill for late)" in note
    assert note.endswith("Ask one rule of all runs: --rule settled")
    assert ll.compare(runs, rule="settled", **FEW).attrs["notes"] == []
    no_layer = [make_run([-0.5] * 6, name="none"), RUNS[0]]
    assert not any("different rules" in each for each in ll.compare(no_layer, rule="boundary", **FEW).attrs["notes"])


def test_under_norm_final_the_shape_of_the_kl_gives_the_measures() -> None:
    runs = [settling(EARLY, "early"), settling(LATE, "late")]
    table = ll.compare(runs, **FEW)
    for (_, row), shape in zip(table.iterrows(), (EARLY, LATE), strict=True):
        assert row["late_share"] == pytest.approx(late_share(np.array(shape, float)), rel=1e-5)
        assert row["settle_depth"] == pytest.approx(settle_depth(np.array(shape, float)), rel=1e-5)
        assert row["late_share_exists"] == row["settle_depth_exists"] == 1
    assert table["late_share"].tolist() == pytest.approx([0.1 / 8, 3.2 / 8], rel=1e-5)
    share = (1 - runs[0].mean("agrees", resamples=2)["mean"].sel(site="resid_post").values)[-1]
    assert table["disagreement_late_share"].between(0, 1).all()
    assert share == 0, "at layer L the policies agree"


def test_under_norm_none_there_is_nothing_to_settle_and_a_command_instead() -> None:
    table = ll.compare(RUNS, **FEW)
    assert table[[*SETTLING, *(f"{name}_low" for name in SETTLING)]].isna().all(axis=None)
    assert table.attrs["verdict"] == []
    (note,) = table.attrs["notes"]
    assert "layerlens analyze MODEL PROMPTS --norm final --out RUN" in note
    assert ll.compare([settling(EARLY, "early")], **FEW).attrs["notes"] == []


def test_a_quantity_that_few_resamples_have_has_no_interval_and_says_how_few() -> None:
    """Ten samples fall under a tenth of their maximum only at the end, one does not: the mean has no convergence layer."""
    change = [0.5, *[-0.9] * 6]
    run = make_run(change, samples=10, noise=0.0, start=5.2)
    data = run.data.copy(deep=True)
    data["entropy"].values[data["sample"].values == 3] += 4.0
    table = ll.compare([replace(run, data=data)], **FEW)
    assert np.isnan(table["convergence_layer"].item())
    assert table[["convergence_layer_low", "convergence_layer_high"]].isna().all(axis=None)
    assert 0.2 < table["convergence_layer_exists"].item() < 0.5, "resamples without sample 3: (9/10)^10"


def test_runs_of_the_same_problems_are_resampled_together() -> None:
    """The samples that are hard for one are hard for the other: the pairs' difference has the narrower interval."""
    shapes = (EARLY, [value + 0.5 * (value > 0) for value in EARLY])
    one, other = (settling(shape, name, samples=20, noise=0.4) for shape, name in zip(shapes, "ab", strict=True))
    renamed = replace(other, data=other.data.assign_coords(sample_id=("sample", [f"x{i}" for i in range(20)])))
    widths = []
    for second, paired in ((other, True), (renamed, False)):
        rows = compare_runs([one, second], **FEW).differences.set_index("measure")
        assert (rows["paired"] == paired).all()
        assert rows.loc["effective_depth", "difference"] == pytest.approx(0, abs=1e-9)
        widths.append(rows.loc["effective_depth", "difference_high"] - rows.loc["effective_depth", "difference_low"])
    assert widths[0] == pytest.approx(0, abs=1e-9), "both runs have the same entropies, sample by sample"
    assert widths[1] > 1e-5


def test_the_verdict_says_which_model_settles_later_and_how_sure() -> None:
    early, late = settling(EARLY, "early"), settling(LATE, "late")
    alone, other, verdict = compare_runs([early, late], **FEW).verdict
    assert re.match(
        r"early: 1\.2% \(1\.2 to 1\.3%\) of the KL to the final policy is left at 90% of the depth, and it falls under a tenth at \d\d%",
        alone,
    )
    assert other.startswith("late: 40%")
    assert re.match(
        r"late settles later than early: it has 39 points \(3\d to 3\d; paired over 12 problems\) more left; "
        r"it falls under a tenth of its start \d\d% of the depth later \(\d\d to \d\d%\), so both measures say the same",
        verdict,
    )
    assert compare_runs([late, early], **FEW).verdict[-1] == verdict, "in whichever order they come"
    prompts = {"text_token_id": ("text", np.arange(12) // 2), "text_sample": ("text", np.arange(12))}
    starts = {"response_start": ("sample", [1] * 12), "sample_index": ("sample", np.arange(12))}
    both = [replace(run, data=run.data.assign_coords(prompts | starts)) for run in (early, late)]
    assert "paired over 6 problems" in compare_runs(both, **FEW).verdict[-1], "two answers to each"
    twin = compare_runs([late, bumpy(LATE, "twin", 5)], **FEW).verdict[-1]
    assert "are not separated: what is left differs by" in twin
    assert "an interval that contains 0" in twin
    single = compare_runs([settling(EARLY, "a", samples=1), settling(LATE, "b", samples=1)], **FEW).verdict[-1]
    assert "cannot be told apart: one sample has no interval" in single
    three = compare_runs([early, late, settling([8, 6, 4, 3, 2, 1, 0], "middle")], **FEW).verdict
    assert [text.split(":")[0] for text in three[3:]] == ["late settles later than middle", "middle settles later than early"]
    same = compare_runs([early, early], **FEW)
    assert same.differences["run"].iloc[0] == "early (1)"


def test_what_does_not_compare_is_refused() -> None:
    with pytest.raises(SelectionError, match="mix the norm conventions final and none"):
        ll.compare([RUNS[0], make_run(QWEN, norm="final")])
    with pytest.raises(SelectionError, match="no run to compare"):
        ll.compare([])
