"""The layer that the data show, with how stable it is and what speaks against it; and no layer where they show none."""

from __future__ import annotations

import re
from dataclasses import replace

import numpy as np
import pytest

import layerlens as ll
from layerlens.errors import SelectionError
from layerlens.selection.curves import read_curves
from layerlens.selection.layer import _against
from layerlens.selection.rules import Answer
from layerlens.types import RULES
from tests.support.choices import FEW, QWEN, plain
from tests.support.synthetic_runs import make_run
from tests.support.tiny_models import random_ids


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
    choice = ll.select_layer(make_run([-0.5] * 8, start=6.0, samples=samples), "boundary", **FEW)
    assert (choice.layer, choice.outcome) == (None, "none")
    assert choice.frequency == 1.0 or samples == 1, "how stable it is that there is none"
    assert "no exploration phase" in choice.reason
    assert choice.phases == {"exploration": None, "integration": None, "convergence": (1, 8)}
    assert plain(choice)["layer"] is None


def test_an_exploration_that_is_open_to_the_end_answers_the_layer_below_the_last() -> None:
    run = make_run([0.5] * 12, attn_change=[-0.2] * 6 + [-1.5] + [-0.2] * 5, start=9.0)
    choice = ll.select_layer(run, "boundary", **FEW)
    assert (choice.layer, choice.outcome, choice.rule, choice.frequency) == (11, "open", "boundary", 1.0)
    assert "layer 11: the layer below the last, as exploration is still open at the top" in choice.reason
    assert "no interval lies below zero" in choice.reason
    assert any("exploration is still open at layer 12" in text for text in choice.against)
    assert choice.phases == {"exploration": (1, 12), "integration": None, "convergence": None}
    others = choice.candidates[choice.candidates["chosen"]].set_index("rule")["layer"]
    assert others["entropy_drop"] == 7
    assert others["boundary"] == 11


def bare(run: ll.Run, **metrics: float) -> ll.Run:
    """The run with metrics of one value everywhere, or without those that are None."""
    data = run.data.copy(deep=True)
    for name, value in metrics.items():
        data[name][:] = value
    return replace(run, data=data)


def test_an_open_answer_is_the_last_resort() -> None:
    """An exploration without an end and a threshold that layer 1 passes give the ends of the model, whatever lies in between."""
    run = make_run([0.5] * 12, norm="final", start=9.0)
    choice = ll.select_layer(run, **FEW)
    assert (choice.layer, choice.outcome, choice.rule) == (11, "layer", "settled"), "by its own figures, not by construction"
    assert (
        "boundary, the rule of the paper, names layer 11 by construction: exploration is still open at layer 12, so the data show no "
        "end of it; 11 is the last but one"
    ) in choice.against
    opened = choice.candidates[choice.candidates["open"]]
    assert opened["rule"].tolist() == ["boundary", "skill"][: len(opened)]
    assert "boundary layer 11 (open: an end of the model by construction)" in choice.recommendation
    # neither KL, agreement nor skill cross their thresholds: the open boundary is all that is left
    left = ll.select_layer(bare(run, kl_to_final=5.0, agrees=1, logp_next=-0.3), **FEW)
    assert (left.layer, left.outcome, left.rule) == (11, "open", "boundary")
    assert "by construction" in left.recommendation.splitlines()[2]


@pytest.mark.parametrize("rule", ["skill", "agreement", "settled"])
def test_a_threshold_that_layer_1_passes_is_open(rule: str) -> None:
    run = make_run([-0.5] * 6, norm="final", start=9.0)
    data = bare(run, agrees=1, logp_next=-0.3).data
    data["kl_to_final"].loc[{"site": "resid_post"}] = 0.0
    choice = ll.select_layer(replace(run, data=data), rule, **FEW)
    assert (choice.layer, choice.outcome) == (1, "open")
    assert "the first layer passes already, so the data do not show where the policy forms" in choice.against


def test_an_early_turn_that_a_late_rise_outvotes_is_told() -> None:
    """The shape + - + of SmolLM2 under norm final: no sentence may say that it never turns."""
    choice = ll.select_layer(make_run([1.5, 0.3, *[-0.3, -0.6, -0.6, -0.6], *[1.0] * 9], start=9.0, norm="final"), "boundary", **FEW)
    assert (choice.layer, choice.outcome) == (14, "open")
    assert "no interval lies below zero" not in choice.reason
    told = " | ".join(choice.against)
    assert "the intervals of layers 3-6 lie on the other side of zero than their phase; ΔS first turns after layer 2" in told
    assert "the phases fit poorly" in told


def test_a_rise_within_its_margin_of_error_is_no_exploration() -> None:
    run = make_run([0.0] * 36, noise=0.15, samples=8, start=9.0)
    choice = ll.select_layer(run, "boundary", **FEW)
    assert (choice.layer, choice.outcome) == (None, "none")
    assert re.search(r"mean FFN ΔS of layers 1-36 is \+[\d.]+ nats, within its margin of error \([\d.]+\): no exploration", choice.reason)
    alone = ll.select_layer(make_run([0.2] * 3 + [-0.2] * 9, noise=0.0, samples=1, start=9.0), "boundary", **FEW)
    assert alone.layer == 3, "one sample has no margin of error"


def test_answers_that_less_than_half_of_the_resamples_give_name_no_layer() -> None:
    run = make_run([0.5] * 6 + [0.05] * 10 + [-0.5] * 4, noise=0.6, samples=8, start=9.0)
    choice = ll.select_layer(run, "boundary", **FEW)
    assert (choice.layer, choice.outcome) == (None, "undetermined")
    assert choice.frequency < 0.5
    assert re.match(r"undetermined: (no layer|layer \d+) in \d+% of resamples, (no layer|layer \d+) in \d+%", choice.reason)
    assert plain(choice)["outcome"] == "undetermined"


def test_rules_are_asked_in_order_and_those_passed_over_say_why() -> None:
    falling = make_run([-0.5] * 12, start=8.0)
    choice = ll.select_layer(falling, **FEW)
    assert choice.rule == "skill"
    assert choice.layer == ll.select_layer(falling, "skill", **FEW).layer
    assert choice.against[0].startswith("boundary, the rule of the paper, names no layer: mean FFN ΔS does not rise above zero")
    assert choice.settings["rule"] is None
    asked = ll.select_layer(falling, "boundary", **FEW)
    assert (asked.layer, asked.settings["rule"]) == (None, "boundary")
    assert "skill says" in asked.reason


def test_a_layer_that_is_no_better_than_guessing_is_passed_over_unless_asked_for() -> None:
    run = make_run(QWEN, usable_from=20, samples=20)
    choice = ll.select_layer(run, **FEW)
    assert choice.usable == tuple(range(20, 37))
    assert (choice.rule, choice.is_usable) == ("skill", True)
    assert choice.layer >= 20
    assert re.search(
        r"names layer 6 \(\d+%\), which is not usable: its policy gives the text -2.0 nats a token over guessing", choice.against[0]
    )
    asked = ll.select_layer(run, "boundary", **FEW)
    assert (asked.layer, asked.is_usable) == (6, False)
    assert asked.skill == pytest.approx(-2, abs=0.05)
    assert any(text.startswith("the layer is not usable: its policy gives the text -2.0 nats") for text in asked.against)
    hopeless = ll.select_layer(make_run(QWEN, usable_from=37, samples=20), **FEW)
    assert (hopeless.layer, hopeless.outcome, hopeless.usable) == (None, "unusable", ())
    assert hopeless.reason.startswith(
        "no layer: of the layers that rules name none is both usable and below the last; boundary names 6 (100% of resamples"
    )


def test_the_last_layer_is_no_internal_policy_to_recommend() -> None:
    """Every rule but `settled` finds nothing, and that one names layer L, whose policy is the final policy."""
    run = make_run([-0.5] * 4, norm="final", start=6.0)
    data = run.data.copy(deep=True)
    data["agrees"][:] = 0
    data["kl_to_final"].loc[{"layer": [1, 2, 3]}] = 5.0
    data["final_logp_next"][:] = -99.0
    choice = ll.select_layer(replace(run, data=data.drop_vars("entropy").assign(entropy=data["entropy"] * 0 + 1)), **FEW)
    assert (choice.layer, choice.outcome) == (None, "none")
    assert any("settled names layer 4, the last: training it is training the final policy" in text for text in choice.against)
    assert ll.select_layer(replace(run, data=data), "settled", **FEW).layer == 4


def test_a_norm_that_does_not_read_the_model_is_told_with_what_to_do() -> None:
    run = make_run(QWEN, usable_from=37, samples=20)
    assert ll.select_layer(run, **FEW).diagnosis == (
        "norm none does not read this model: at its last layer it agrees with the final policy on 100% of tokens and is "
        "2 nats a token worse than guessing; analyse and train with norm final (layerlens analyze ... --norm final)"
    )
    data = run.data.copy(deep=True)
    data["agrees"][:] = 0
    assert "agrees with the final policy on 0% of tokens" in ll.select_layer(replace(run, data=data), **FEW).diagnosis
    assert ll.select_layer(make_run(QWEN), **FEW).diagnosis is None
    final = make_run(QWEN, norm="final", usable_from=37)
    assert ll.select_layer(final, **FEW).diagnosis is None, "under norm final the last layer is the final policy"


def test_the_other_weighting_is_named_when_it_gives_another_layer() -> None:
    """One long sample of eight turns later: by tokens it decides, by samples it does not."""
    short = make_run([1.0] * 3 + [-0.3] * 6, samples=8, tokens=8, start=9.0)
    late = make_run([1.0] * 6 + [-1.0] * 3, samples=8, tokens=8, start=9.0)
    data = short.data.copy(deep=True)
    last = data["sample"].values == 7
    data["entropy"].values[last] = late.data["entropy"].values[last]
    data = data.assign_coords(weight=("token", np.where(last, 50.0, 1.0)))
    choice = ll.select_layer(replace(short, data=data), **FEW)
    assert choice.layer == 3
    assert "weighing tokens alike, the rule gives layer 6 instead" in choice.against
    by_token = ll.select_layer(replace(short, data=data), over="token", **FEW)
    assert "weighing samples alike, the rule gives layer 3 instead" in by_token.against or by_token.layer is None


@pytest.mark.parametrize(("samples", "told"), [(1, True), (7, True), (8, False)])
def test_few_samples_are_called_few(samples: int, told: bool) -> None:
    choice = ll.select_layer(make_run(QWEN, samples=samples), **FEW)
    assert any("too few to say how stable it is: analyse 8 or more" in text for text in choice.against) == told


@pytest.mark.parametrize("sign", [1, -1])
def test_near_zero_layers_after_exploration_are_integration(sign: int) -> None:
    change = [1.0, 0.9, 0.8, *[sign * 0.02, -sign * 0.03] * 3, sign * 0.04, -0.7, -0.9]
    choice = ll.select_layer(make_run(change, start=5.0, noise=0.01), **FEW)
    assert choice.layer == 3, "not the last positive value anywhere"
    assert choice.phases["integration"] == (4, 10)


def test_data_that_leave_the_layer_open_say_so() -> None:
    """Six samples of fourteen turn after layer 3, the others after layer 6: layers 4-6 cancel, and resamples disagree about them."""
    early, late = (make_run([1.0] * n + [-1.0] * (9 - n), samples=14, start=9.0, norm="final") for n in (3, 6))
    data = early.data.copy(deep=True)
    many = data["sample"].values >= 6
    data["entropy"].values[many] = late.data["entropy"].values[many]
    choice = ll.select_layer(replace(early, data=data), "boundary", resamples=1000)
    assert choice.frequency < 0.9
    assert set(choice.candidates["rule"]) == set(RULES) - {"settling_depth"}
    for rule in choice.candidates["rule"].unique():
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


def test_the_same_seed_gives_the_same_answer() -> None:
    run = make_run(QWEN, noise=0.3, samples=5)
    assert plain(ll.select_layer(run, seed=4, **FEW)) == plain(ll.select_layer(run, seed=4, **FEW))


def test_what_is_missing_is_named(qwen: ll.LensModel) -> None:
    samples = [ll.Sample(random_ids(8, i), 3) for i in range(3)]
    with pytest.raises(SelectionError, match="needs all 4 layers; the run of tiny-random has 2"):
        ll.select_layer(ll.analyze(qwen, samples, layers=[1, 2]))
    stream = ll.analyze(qwen, samples, sites=["resid_pre", "resid_post"])
    with pytest.raises(SelectionError, match=r"needs entropy at ffn_in and ffn_out; .* at resid_pre, resid_post"):
        ll.select_layer(stream, "boundary")
    found = ll.select_layer(stream, "entropy_drop", **FEW)
    assert found.phases == {}
    assert set(found.candidates["rule"]) == {"skill", "entropy_drop", "agreement"}
    with pytest.raises(SelectionError, match="choosing a layer needs what a rule reads"):
        ll.select_layer(ll.analyze(qwen, samples, sites="attn_out"))
    bare = ll.analyze(qwen, samples, metrics="entropy")
    with pytest.raises(SelectionError, match="needs agrees at resid_post"):
        ll.select_layer(bare, "agreement")
    assert ll.select_layer(bare, "boundary", **FEW).usable is None
    with pytest.raises(SelectionError, match="no response rows"):
        ll.select_layer(ll.analyze(qwen, [ll.Sample(random_ids(6), 6)]))
    assert ll.select_layer(ll.analyze(qwen, [ll.Sample(random_ids(6), 6)]), rows="all", **FEW).samples == 1
    with pytest.raises(SelectionError, match="drop_first must be 0 or more"):
        ll.select_layer(make_run(QWEN), drop_first=-1)


@pytest.mark.parametrize(("same", "stable"), [(796, True), (794, False)])
def test_a_stability_is_judged_as_it_is_shown(same: int, stable: bool) -> None:
    answer = Answer(np.array([5] * (1 + same) + [3] * (1000 - same)), "")
    curves = read_curves(make_run([1.0] * 5 + [-1.0] * 5, samples=12, norm="final"))
    against = list(_against(answer, "layer", "boundary", curves, None, None))
    assert any("it is not stable: layer 5 in 79% of resamples" in text for text in against) is not stable
    assert stable or answer.frequency == 0.794
