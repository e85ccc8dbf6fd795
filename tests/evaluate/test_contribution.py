"""What each layer contributes to the gain of training."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import layerlens as ll
from layerlens.errors import SelectionError
from layerlens.evaluate import Evaluation
from layerlens.metrics.contribution import contribution
from layerlens.results.contribution import LayerContribution
from layerlens.storage.training_folder import TrainedAs
from tests.support.evaluations import evaluated, sampled


def seeds(*mean_rights: int, problems: int = 40, answers: int = 8) -> list[Evaluation]:
    """An evaluation for each seed, whose problems have so many right answers, one more or less."""
    found = []
    for seed, right in enumerate(mean_rights):
        noise = np.random.default_rng([right, seed]).integers(-1, 2, problems)
        found.append(evaluated(np.clip(right + noise, 0, answers).tolist(), answers))
    return found


def answered_by(found: Evaluation, layer: str) -> Evaluation:
    return replace(found, manifest=replace(found.manifest, config=replace(found.manifest.config, layer=layer)))


def asked(found: Evaluation, prompt: str) -> Evaluation:
    """The evaluation as if each problem had been put in this prompt."""
    return replace(found, problems=tuple(replace(problem, prompt=prompt.format(problem.id)) for problem in found.problems))


def unchecked(found: Evaluation) -> Evaluation:
    """The evaluation as if the check of every answer had hung."""
    hung = [
        replace(problem, answers=tuple(replace(answer, score=0.0, unchecked="no answer in 10 s") for answer in problem.answers))
        for problem in found.problems
    ]
    return replace(found, problems=tuple(hung))


def trained_as(
    found: list[Evaluation], layers: str, objective: str = "final policy", steps: int | None = 8, first: int = 0, **more: Any
) -> list[Evaluation]:
    """The evaluations as of models that a training made, one of each seed."""
    return [with_training(each, TrainedAs(layers, objective, steps, first + seed, **more)) for seed, each in enumerate(found)]


def with_training(found: Evaluation, trained: TrainedAs) -> Evaluation:
    return replace(found, manifest=replace(found.manifest, model=replace(found.manifest.model, trained=trained)))


TRAINED = {"base": seeds(2), "all": seeds(6, 6, 6), 3: seeds(4, 4, 4), "1-2": seeds(2, 2, 2), 11: seeds(6, 6, 6)}


def test_contributions_are_shares_of_the_gain_of_all_layers() -> None:
    found = ll.layer_contribution(TRAINED)
    table = found.table.set_index("layers")
    assert list(table.index) == ["1-2", "3", "11"]
    base = TRAINED["base"][0].correct.mean()
    gains = {
        name: np.mean([each.correct.mean() for each in TRAINED[key]]) - base for name, key in (("3", 3), ("1-2", "1-2"), ("all", "all"))
    }
    assert table.loc["3", "gain"] == pytest.approx(gains["3"])
    assert found.full["gain"] == pytest.approx(gains["all"])
    assert table.loc["3", "contribution"] == pytest.approx(gains["3"] / gains["all"])
    assert table.loc["11", "contribution"] == 1.0
    for prefix in ("", "seeds_"):
        low, high = table.loc["3", f"contribution_{prefix}low"], table.loc["3", f"contribution_{prefix}high"]
        assert low < table.loc["3", "contribution"] < high
    assert table.loc["11", "contribution_high"] == pytest.approx(1.0), "the same answers: the same gain on every draw"
    assert found.base == pytest.approx(base)
    assert (found.full["problems"], found.full["seeds"]) == (40, 3)
    assert np.isnan(table.loc["1-2", "layer"])


@settings(max_examples=20, deadline=None)
@given(st.lists(st.floats(-1, 1), min_size=1, max_size=5), st.floats(0.1, 1))
def test_a_contribution_is_a_ratio_that_no_unit_changes(gains: list[float], full: float) -> None:
    shares = contribution(np.array(gains), np.array(full))
    np.testing.assert_allclose(shares, np.array(gains) / full)
    np.testing.assert_allclose(contribution(100 * np.array(gains), np.array(100 * full)), shares)
    assert contribution(np.array([full]), np.array(full))[0] == 1
    assert np.isnan(contribution(np.array(gains), np.array(0.0))).all()


def test_without_a_gain_of_all_layers_there_is_no_interval_of_a_contribution() -> None:
    rights = [3, 4, 5, 4] * 10
    turned = [evaluated(rights[by:] + rights[:by], 8) for by in (1, 2)]
    found = ll.layer_contribution({"base": evaluated(rights, 8), "all": turned, 2: seeds(6, 6)})
    assert found.full["low"] <= 0 <= found.full["high"]
    row = found.table.iloc[0]
    assert row["low"] > 0
    assert row[["contribution", "contribution_low", "contribution_high", "contribution_seeds_low"]].isna().all()
    harmed = ll.layer_contribution({"base": seeds(4), "all": seeds(2), 1: seeds(1)})  # who loses most would have the largest share
    assert harmed.full["high"] < 0
    assert harmed.table["contribution"].isna().all()


def test_one_seed_says_nothing_of_other_seeds() -> None:
    row = ll.layer_contribution({"base": seeds(2), "all": seeds(6), 1: seeds(4)}).table.iloc[0]
    assert np.isnan(row["seeds_low"])
    assert np.isnan(row["contribution_seeds_high"])
    assert row["contribution_low"] < row["contribution_high"]


def test_layers_that_never_change_have_bounds_for_a_gain_and_no_interval_of_their_share() -> None:
    found = ll.layer_contribution({"base": seeds(2), "all": seeds(6), 1: seeds(2)})
    row = found.table.iloc[0]
    assert row["gain"] == 0 == row["contribution"]
    assert row["low"] < 0 < row["high"]
    assert np.isnan(row["contribution_low"])


def test_the_rank_correlation_is_of_the_gains_and_has_an_interval() -> None:
    found = ll.layer_contribution({"base": seeds(1), "all": seeds(6, 6), **{layer: seeds(layer, layer) for layer in (1, 2, 3, 5)}})
    assert found.rank_correlation({1: 0.1, 2: 0.2, 3: 0.4, 5: 0.9})[0] == pytest.approx(1.0)
    rho, low, high = found.rank_correlation({1: -0.1, 2: -0.2, 3: -0.4, 5: -0.3, 7: 4.0})
    assert low <= rho == pytest.approx(-0.8)
    assert rho <= high
    assert np.isfinite(found.rank_correlation({1: 1.0, 2: 2.0, 3: 0.0}, over="seeds")).all()
    with pytest.raises(SelectionError, match="needs three layers"):
        found.rank_correlation({1: 1.0, 2: 1.0, 3: float("nan")})


def test_chance_is_the_share_of_orders_with_as_strong_a_correlation() -> None:
    found = ll.layer_contribution({"base": seeds(1), "all": seeds(6), **{layer: seeds(layer + 1) for layer in range(1, 7)}})
    assert found.chance({layer: float(layer) for layer in range(1, 7)}) == pytest.approx(2 / math.factorial(6))  # one rises, one falls
    swapped = {layer: float({1: 4, 4: 1}.get(layer, layer)) for layer in range(1, 7)}
    strength = np.abs((np.array(list(itertools.permutations(range(6)))) - 2.5) @ (np.arange(6) - 2.5))
    assert found.chance(swapped) == pytest.approx(np.mean(strength >= 8.5))
    assert np.isnan(found.chance(dict.fromkeys(range(1, 7), 1.0)))
    with pytest.raises(SelectionError, match="needs three layers"):
        found.chance({1: 1.0})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"base": []}, "no base"),
        ({"all": []}, "no all"),
        ({"base": seeds(1, 1)}, "base is one model"),
        ({3: seeds(4)}, "all has 3, layer 3 has 1"),
        ({"layer 3": seeds(4, 4, 4)}, "got 'layer 3'"),
        ({3: seeds(4, 4, 4, problems=39)}, "answered different problems"),
        (
            {3: [sampled(each, temperature=0.0) for each in seeds(4, 4, 4)]},
            r"evaluated otherwise than m \(base\): temperature 0.0, not 1.0",
        ),
        ({3: [answered_by(each, "mix:1,2") for each in seeds(4, 4, 4)]}, "layer mix:1,2, not None; evaluate all alike"),
        ({13: seeds(4, 4, 4)}, "m has 12 layers, so layer 13 was not trained alone"),
        (
            {"base": [asked(each, "{}") for each in TRAINED["base"]], 3: [asked(each, "Answer badly. {}") for each in seeds(4, 4, 4)]},
            r"m \(3\) was evaluated otherwise than m \(base\): other prompts; evaluate all alike",
        ),
        ({3: [unchecked(each) for each in seeds(4, 4, 4)]}, r"reward checked none of the answers of m to toy \(no answer in 10 s\)"),
        ({3: [replace(each, path=Path("l3")) for each in seeds(4, 4, 4)]}, "l3 is given twice, as 3 and as 3"),
    ],
)
def test_evaluations_that_do_not_fit_together_are_refused(change: dict[int | str, list[Evaluation]], message: str) -> None:
    with pytest.raises(SelectionError, match=message):
        ll.layer_contribution({**TRAINED, **change})
    with pytest.raises(SelectionError, match="no layer trained alone"):
        ll.layer_contribution({"base": TRAINED["base"], "all": TRAINED["all"]})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({3: trained_as(seeds(4, 4, 4), "4")}, "m is given as layer 3, but its training says layer 4"),
        ({"1-2": trained_as(seeds(4, 4, 4), "all")}, "m is given as layers 1-2, but its training says all layers"),
        ({"all": trained_as(seeds(6, 6, 6), "3")}, "m is given as all layers, but its training says layer 3"),
        (
            {3: trained_as(seeds(4, 4, 4), "3", "policy of layer 11 for 5 rollouts (norm none), final policy")},
            r"m \(3\) was trained otherwise than m \(all\): objective policy of layer 11 .* final policy, not final policy;",
        ),
        ({3: trained_as(seeds(4, 4, 4), "3", steps=9)}, r"m \(3\) was trained otherwise than m \(all\): steps 9, not 8; .* seed by seed"),
        ({3: trained_as(seeds(4, 4, 4), "3", first=1)}, r"m \(3\) was trained otherwise than m \(all\): seed 1, not 0"),
        ({3: trained_as(seeds(4, 4, 4), "3", rollout=64)}, r"m \(3\) was trained otherwise than m \(all\): rollout 64, not 128"),
        (
            {3: [*trained_as(seeds(4, 4), "3", learning_rate=1e-3), *trained_as(seeds(4), "3", first=2, learning_rate=2e-3)]},
            "layer 3: seeds were trained at learning rates of 0.001, 0.002; give those of one rate",
        ),
    ],
)
def test_trainings_that_do_not_go_together_are_refused(change: dict[int | str, list[Evaluation]], message: str) -> None:
    told = {
        "base": TRAINED["base"], "all": trained_as(TRAINED["all"], "all", rollout=128), 3: trained_as(TRAINED[3], "3"),
        "1-2": trained_as(TRAINED["1-2"], "1-2"), 11: trained_as(TRAINED[11], "11", steps=None),
    }  # fmt: skip
    assert ll.layer_contribution(told).table.equals(ll.layer_contribution(TRAINED).table)
    with pytest.raises(SelectionError, match=message):
        ll.layer_contribution({**told, **change})


def test_learning_rates_are_told_where_they_differ() -> None:
    def found(**rates: float) -> LayerContribution:
        kinds = {"all": ("full", seeds(6)), "3": ("low", seeds(4)), "11": ("high", seeds(6))}
        told = {key: trained_as(each, key, learning_rate=rates[rate]) if rate in rates else each for key, (rate, each) in kinds.items()}
        return ll.layer_contribution({"base": seeds(2), **told})

    assert found().learning_rates() == found(low=1e-3).learning_rates() == found(full=1e-3, low=1e-3, high=1e-3).learning_rates() == ""
    assert found(full=2e-4, low=7e-4, high=7e-4).learning_rates() == "learning rates: layers alone 0.0007, all layers 0.0002"
    told = found(full=2e-4, low=2e-4, high=7e-4)
    assert told.learning_rates() == "learning rates: layers alone 0.0002 to 0.0007, all layers 0.0002"
    assert told.table["learning_rate"].tolist() == [2e-4, 7e-4]
    assert told.full["learning_rate"] == 2e-4
