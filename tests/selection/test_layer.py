"""The layer that the data show, with how sure they are; and no layer where they show none."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import layerlens as ll
from layerlens.errors import SelectionError
from layerlens.metrics import PhaseRule
from layerlens.types import RULES
from tests.support.synthetic_runs import make_run
from tests.support.tiny_models import random_ids

QWEN = [0.9, 1.6, 1.4, 1.1, 0.8, 0.5, *[0.03, -0.05] * 10, *np.linspace(-0.4, -2.0, 10)]
FEW = {"resamples": 300}


def plain(choice: ll.LayerChoice) -> dict[str, Any]:
    return json.loads(json.dumps(choice.to_dict(), allow_nan=False))


@pytest.mark.parametrize("noise", [0.0, 0.02, 0.1])
def test_known_phases_give_the_known_layer(noise: float) -> None:
    choice = ll.select_layer(make_run(QWEN, noise=noise, samples=20), **FEW)
    assert choice.layer == 6
    assert choice.frequency > 0.95
    assert choice.phases == {"exploration": (1, 6), "integration": (7, 26), "convergence": (27, 36)}
    assert choice.rule == "boundary"
    assert "layer 6: last layer of exploration" in choice.reason
    assert "of resamples of 20 samples" in choice.reason
    assert (choice.norm, choice.model, choice.samples) == ("none", "synthetic", 20)


@pytest.mark.parametrize("last", [1, 3, 7, 11])
def test_the_boundary_moves_with_the_data(last: int) -> None:
    change = [0.6] * last + [-0.6] * (12 - last)
    choice = ll.select_layer(make_run(change, start=8.0), **FEW)
    assert (choice.layer, choice.frequency) == (last, 1.0)


@pytest.mark.parametrize("samples", [1, 12])
def test_no_exploration_means_no_layer(samples: int) -> None:
    choice = ll.select_layer(make_run([-0.5] * 8, start=6.0, samples=samples), **FEW)
    assert choice.layer is None
    assert choice.frequency == 1.0 or samples == 1, "how sure the data are that there is none"
    assert "no exploration phase" in choice.reason
    assert choice.phases == {"exploration": None, "integration": None, "convergence": (1, 8)}
    assert plain(choice)["layer"] is None


def test_a_change_that_never_turns_means_no_layer_and_the_others_answer() -> None:
    choice = ll.select_layer(make_run([0.5] * 12, attn_change=[-0.2] * 6 + [-1.5] + [-0.2] * 5, start=9.0), **FEW)
    assert choice.layer is None
    assert "never turns" in choice.reason
    assert "entropy_drop says 7" in choice.reason
    assert "agreement says" in choice.reason
    others = choice.candidates[choice.candidates["chosen"]].set_index("rule")["layer"]
    assert others["entropy_drop"] == 7
    assert others.isna()["boundary"]


@pytest.mark.parametrize("sign", [1, -1])
def test_near_zero_layers_after_exploration_are_integration(sign: int) -> None:
    change = [1.0, 0.9, 0.8, *[sign * 0.02, -sign * 0.03] * 3, sign * 0.04, -0.7, -0.9]
    choice = ll.select_layer(make_run(change, start=5.0, noise=0.01), **FEW)
    assert choice.layer == 3, "not the last positive value anywhere"
    assert choice.phases["integration"] == (4, 10)


def test_data_that_leave_the_layer_open_say_so() -> None:
    """Six samples of fourteen turn after layer 3, the others after layer 6: layers 4-6 cancel, and resamples disagree about them."""
    early, late = make_run([1.0] * 3 + [-1.0] * 6, samples=14, start=9.0), make_run([1.0] * 6 + [-1.0] * 3, samples=14, start=9.0)
    data = early.data.copy(deep=True)
    many = data["sample"].values >= 6
    data["entropy"].values[many] = late.data["entropy"].values[many]
    choice = ll.select_layer(replace(early, data=data), resamples=1000)
    assert choice.frequency < 0.9
    for rule in RULES:
        rows = choice.candidates[choice.candidates["rule"] == rule]
        assert rows["frequency"].sum() == pytest.approx(1)
        assert rows["chosen"].sum() == 1
        assert rows["frequency"].is_monotonic_decreasing
    first = choice.candidates.iloc[: (choice.candidates["rule"] == "boundary").sum()]
    assert set(first["rule"]) == {"boundary"}, "the rule that was asked for comes first"
    assert len(first) > 1
    mine = first[first["chosen"]]
    assert mine["frequency"].item() == choice.frequency
    assert (mine["layer"].isna().item() and choice.layer is None) or mine["layer"].item() == choice.layer


def test_one_sample_has_no_frequency() -> None:
    choice = ll.select_layer(make_run(QWEN, samples=1), **FEW)
    assert choice.layer == 6
    assert np.isnan(choice.frequency)
    assert "one sample, so no bootstrap" in choice.reason
    assert plain(choice)["frequency"] is None
    assert all(row["frequency"] is None for row in plain(choice)["candidates"])


def test_samples_without_a_response_do_not_count(qwen: ll.LensModel) -> None:
    speaking = [ll.Sample(random_ids(9, i), 3) for i in range(4)]
    silent = [ll.Sample(random_ids(9, 50 + i), 9) for i in range(4)]
    alone, mixed = ll.analyze(qwen, speaking), ll.analyze(qwen, [*silent[:2], *speaking, *silent[2:]])
    for name in ("entropy", "entropy_change", "perplexity"):
        a, b = alone.mean(name, resamples=200), mixed.mean(name, resamples=200)
        for part in ("mean", "low", "high"):
            np.testing.assert_allclose(a[part], b[part], rtol=1e-4, atol=1e-5)
        assert b.attrs["samples"] == 4
    first, second = ll.select_layer(alone, **FEW), ll.select_layer(mixed, **FEW)
    assert (first.layer, first.frequency, first.samples) == (second.layer, second.frequency, second.samples)
    single = ll.select_layer(ll.analyze(qwen, [silent[0], speaking[0]]), **FEW)
    assert np.isnan(single.frequency)
    assert single.samples == 1


def test_entropy_drop_is_the_layer_across_which_most_is_lost() -> None:
    change = [0.5, 0.2, -0.3, -2.0, -0.1, -0.4]
    choice = ll.select_layer(make_run(change, start=4.0), "entropy_drop", **FEW)
    assert (choice.layer, choice.rule) == (4, "entropy_drop")
    assert "falls most across it, by 2 nats" in choice.reason
    rising = ll.select_layer(make_run([0.5] * 5), "entropy_drop", **FEW)
    assert rising.layer is None
    assert "falls in no layer" in rising.reason


def test_agreement_is_the_first_layer_over_the_share() -> None:
    run = make_run([0.5, -0.5] * 5, samples=30, tokens=60)
    mean = run.mean("agrees", resamples=2)["mean"].sel(site="resid_post").values
    for share in (0.1, 0.5, 0.9):
        choice = ll.select_layer(run, "agreement", share=share, **FEW)
        assert choice.layer == int(np.argmax(mean >= share)) + 1
        assert f"on {share:.0%} of tokens" in choice.reason
        assert choice.settings["share"] == share
    data = run.data.copy(deep=True)
    data["agrees"][:] = 0
    never = ll.select_layer(replace(run, data=data), "agreement", **FEW)
    assert never.layer is None
    assert "no layer agrees" in never.reason


def test_the_tolerance_moves_the_answer() -> None:
    run = make_run([1.0, 0.8, 0.3, 0.3, 0.01, -0.01, -0.8, -0.9], noise=0.005, start=6.0)
    assert ll.select_layer(run, phases=PhaseRule(0.1), **FEW).layer == 4
    wide = ll.select_layer(run, phases=PhaseRule(0.5), **FEW)
    assert wide.layer == 2
    assert wide.settings["tolerance"] == 0.5
    assert wide.phases["integration"] == (3, 6)


@pytest.mark.parametrize("rule", RULES)
def test_answers_are_plain_values(rule: str) -> None:
    for run in (make_run(QWEN, samples=5), make_run(QWEN, samples=1), make_run([-1.0, -1.0]), make_run([1.0])):
        answer = plain(ll.select_layer(run, rule, **FEW))
        assert set(answer) == {
            "model", "n_layers", "run", "fingerprint", "norm", "lens", "samples", "layer", "rule", "reason", "frequency", "phases",
            "candidates",
            "settings",
        }  # fmt: skip
        assert answer["layer"] is None or isinstance(answer["layer"], int)
        assert all(isinstance(row["chosen"], bool) for row in answer["candidates"])
        assert plain(ll.LayerChoice.from_dict(answer)) == answer


def test_a_saved_choice_says_on_which_run_and_weights(qwen: ll.LensModel, tmp_path: Path) -> None:
    ll.analyze(qwen, [ll.Sample(random_ids(8, i), 3) for i in range(3)], out=tmp_path / "run")
    choice = ll.select_layer(ll.open_run(tmp_path / "run"), "entropy_drop", **FEW)
    assert (choice.run, choice.fingerprint, choice.n_layers) == (str(tmp_path / "run"), qwen.fingerprint, 4)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"rule": None}, "needs the key 'rule'"),
        ({"candidates": 3}, "holds a value of another kind"),
        ({"phases": {"exploration": 3}}, "holds a value of another kind"),
        ({"layer": 37}, "a layer in 1..n_layers or null, got rule 'boundary', norm 'none', layer 37 and n_layers 36"),
        ({"layer": "6"}, "layer '6'"),
        ({"rule": "best"}, "rule 'best'"),
    ],
)
def test_a_damaged_choice_is_refused(change: dict[str, Any], told: str) -> None:
    answer = plain(ll.select_layer(make_run(QWEN), **FEW)) | change
    with pytest.raises(SelectionError, match=re.escape(told)):
        ll.LayerChoice.from_dict({name: value for name, value in answer.items() if name != "rule" or value is not None})


def test_the_same_seed_gives_the_same_answer() -> None:
    run = make_run(QWEN, noise=0.3, samples=5)
    assert plain(ll.select_layer(run, seed=4, **FEW)) == plain(ll.select_layer(run, seed=4, **FEW))


def test_what_is_missing_is_named(qwen: ll.LensModel) -> None:
    samples = [ll.Sample(random_ids(8, i), 3) for i in range(3)]
    with pytest.raises(SelectionError, match="needs all 4 layers; the run of tiny-random has 2"):
        ll.select_layer(ll.analyze(qwen, samples, layers=[1, 2]))
    stream = ll.analyze(qwen, samples, sites=["resid_pre", "resid_post"])
    with pytest.raises(SelectionError, match=r"needs entropy at ffn_in and ffn_out; .* at resid_pre, resid_post"):
        ll.select_layer(stream)
    found = ll.select_layer(stream, "entropy_drop", **FEW)
    assert found.phases == {}
    assert set(found.candidates["rule"]) == {"entropy_drop", "agreement"}
    with pytest.raises(SelectionError, match="needs agrees at resid_post"):
        ll.select_layer(ll.analyze(qwen, samples, metrics="entropy"), "agreement")
    with pytest.raises(SelectionError, match="no response rows"):
        ll.select_layer(ll.analyze(qwen, [ll.Sample(random_ids(6), 6)]))
    assert ll.select_layer(ll.analyze(qwen, [ll.Sample(random_ids(6), 6)]), rows="all", **FEW).samples == 1
    with pytest.raises(SelectionError, match="drop_first must be 0 or more"):
        ll.select_layer(make_run(QWEN), drop_first=-1)
