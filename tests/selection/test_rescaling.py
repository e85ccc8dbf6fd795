"""Rescalings that no output of a model shows: under norm final no choice, phase, measure or verdict may change."""

from __future__ import annotations

import copy
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import nn

import layerlens as ll
from layerlens.selection.comparison import Comparison, compare_runs
from layerlens.types import READOUT_METRICS
from tests.support.rescaling import rescale_norm_gains
from tests.support.tiny_models import random_ids, tiny_model

SAMPLES = [ll.Sample(random_ids(24, seed), 4, id=f"p{seed}") for seed in range(8)]
FEW = {"resamples": 200}
SITES = ("resid_pre", "ffn_in", "ffn_out", "resid_post")


def norm_gains(model: nn.Module) -> None:
    rescale_norm_gains(model, 4)


def whole_stream(model: nn.Module) -> None:
    """The embedding and all that is added to the stream by 1/16; every norm undoes it, with an epsilon of the stream's new size."""
    model.model.embed_tokens.weight /= 16
    for block in model.model.layers:
        block.self_attn.o_proj.weight /= 16
        block.mlp.down_proj.weight /= 16
        for norm in (block.input_layernorm, block.post_attention_layernorm):
            norm.variance_epsilon /= 256
    model.model.norm.variance_epsilon /= 256


def rescaled(model: nn.Module, how: Callable[[nn.Module], None]) -> nn.Module:
    other = copy.deepcopy(model)
    with torch.no_grad():
        how(other)
        ids = torch.tensor([SAMPLES[0].token_ids])
        assert torch.equal(model(ids).logits, other(ids).logits), "the model's function is what it was"
    return other


def read(model: nn.Module, norm: ll.types.Norm) -> tuple[ll.Run, ll.LayerChoice, Comparison]:
    run = ll.analyze(ll.LensModel.wrap(model), SAMPLES, sites=SITES, metrics=READOUT_METRICS, norm=norm)
    return run, ll.select_layer(run, **FEW), compare_runs([run], **FEW)


@pytest.mark.parametrize("how", [norm_gains, whole_stream])
def test_under_norm_final_nothing_changes(how: Callable[[nn.Module], None]) -> None:
    model = tiny_model("llama", layers=6)
    run, choice, comparison = read(model, "final")
    other_run, other_choice, other_comparison = read(rescaled(model, how), "final")
    for name in ("entropy_change", "skill", "kl_to_final", "agrees"):
        np.testing.assert_allclose(other_run.mean(name, resamples=2)["mean"], run.mean(name, resamples=2)["mean"], atol=2e-3, err_msg=name)
    assert (choice.layer, choice.rule, choice.outcome, choice.phases, choice.usable) == (
        other_choice.layer, other_choice.rule, other_choice.outcome, other_choice.phases, other_choice.usable,
    )  # fmt: skip
    names = [name for name in comparison.table if name not in ("model", "architecture", "norm", "usable_layers", "rule")]
    before, after = (each.table[names].to_numpy(float) for each in (comparison, other_comparison))
    np.testing.assert_allclose(after, before, atol=2e-3)
    assert comparison.verdict == other_comparison.verdict
    assert np.isfinite(comparison.table["late_share"].item())


@pytest.mark.parametrize("how", [norm_gains, whole_stream])
def test_under_norm_none_the_same_rescaling_is_seen(how: Callable[[nn.Module], None]) -> None:
    """So the law above says something: the convention is what keeps it, and a comparison under norm none warns."""
    model = tiny_model("llama", layers=6)
    run, _, comparison = read(model, "none")
    other, *_ = read(rescaled(model, how), "none")
    gap = abs(other.mean("entropy_change", resamples=2)["mean"] - run.mean("entropy_change", resamples=2)["mean"]).max()
    assert gap > 0.1
    assert comparison.notes[0].startswith("norm none compares scales")
    assert comparison.table[["late_share", "settle_depth"]].isna().all(axis=None)
    assert comparison.verdict == ()
