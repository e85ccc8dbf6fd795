"""What each rule but the boundary answers, and its settings."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

import layerlens as ll
from layerlens.errors import SelectionError
from layerlens.metrics import PhaseRule
from tests.support.choices import FEW
from tests.support.synthetic_runs import make_run


def test_entropy_drop_is_the_layer_across_which_most_is_lost() -> None:
    change = [0.5, 0.2, -0.3, -2.0, -0.1, -0.4]
    choice = ll.select_layer(make_run(change, start=4.0), "entropy_drop", **FEW)
    assert (choice.layer, choice.rule) == (4, "entropy_drop")
    assert "falls most across it, by 2 nats" in choice.reason
    rising = ll.select_layer(make_run([0.5] * 5), "entropy_drop", **FEW)
    assert rising.layer is None
    assert "falls across no usable layer" in rising.reason
    first = ll.select_layer(make_run([-5.0, 0.2, -0.3, -2.0, -0.1, -0.4], start=9.0), "entropy_drop", **FEW)
    assert first.layer == 4, "never layer 1, which leaves the embedding behind"
    unusable = ll.select_layer(make_run(change, start=4.0, usable_from=5), "entropy_drop", **FEW)
    assert unusable.layer == 6


def test_skill_is_the_first_layer_with_half_of_the_final_policy_s() -> None:
    run = make_run([0.5, -0.5] * 5, samples=30, tokens=60)
    mean = run.mean("skill", resamples=2)["mean"].sel(site="resid_post").values
    of = run.mean("final_logp_next", resamples=2)["mean"].item() + np.log(run.manifest.model.vocabulary)
    for share in (0.4, 0.5, 0.9):
        choice = ll.select_layer(run, "skill", share=share, **FEW)
        assert choice.layer == int(np.argmax(mean >= share * of)) + 1
        assert choice.skill == pytest.approx(mean[choice.layer - 1])
        assert choice.final_skill == pytest.approx(of)
        assert f"{share:.0%} of the final policy's skill" in choice.reason
    bare = replace(run, data=run.data.drop_vars("final_logp_next"))
    with pytest.raises(SelectionError, match=r"rule 'skill' needs .*final_logp_next"):
        ll.select_layer(bare, "skill")
    final = replace(make_run([0.5, -0.5] * 5, norm="final"), data=bare.data)
    assert ll.select_layer(final, "skill", **FEW).final_skill == pytest.approx(mean[-1]), "under norm final layer L is the final policy"


def test_settled_is_the_first_layer_with_a_tenth_of_the_kl_left() -> None:
    run = make_run([0.5, -0.5] * 10, norm="final")
    choice = ll.select_layer(run, "settled", **FEW)
    assert choice.layer == 18
    assert "stays under a tenth of its start: 0.4 of 4 nats" in choice.reason
    with pytest.raises(SelectionError, match="needs kl_to_final at resid_pre and resid_post under norm final"):
        ll.select_layer(make_run([0.5, -0.5] * 10), "settled")


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


def test_settling_depth_is_the_mean_of_the_tokens() -> None:
    run = make_run([0.5] * 10, norm="final")
    with pytest.raises(SelectionError, match="rule 'settling_depth' needs js_to_final at resid_post"):
        ll.select_layer(run, "settling_depth")
    js = np.ones(run.data["entropy"].shape, np.float32)
    tokens = np.arange(len(js))
    for token in tokens:  # half of the tokens settle at layer 3, half at layer 8
        js[token, (2 if token % 2 else 7) :] = 0.1
    measured = replace(run, data=run.data.assign(js_to_final=(run.data["entropy"].dims, js)))
    choice = ll.select_layer(measured, "settling_depth", **FEW)
    depth = measured.mean("settling_depth", resamples=2)["mean"].item()
    assert choice.layer == round(depth)
    assert 5 <= choice.layer <= 6
    assert f"{depth:.1f} layers" in choice.reason
