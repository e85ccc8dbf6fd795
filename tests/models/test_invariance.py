"""Under norm final and norm matched no number depends on a scale that the model's function does not have."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import layerlens as ll
from layerlens.types import Norm
from tests.support.rescaling import rescale_norm_gains
from tests.support.tiny_models import ARCHITECTURES, random_ids, tiny_model

SAMPLES = [ll.Sample(random_ids(12), 3), ll.Sample(random_ids(7, 1), 2)]


@torch.no_grad()
def last_gain(model: Any, factor: float) -> None:
    """Divides the gain of the final norm, which the unembedding makes up for."""
    model.model.norm.weight /= factor
    model.lm_head.weight *= factor


@torch.no_grad()
def stream(model: Any, factor: float) -> None:
    """Multiplies the whole residual stream: the embedding, and everything that is added to the stream."""
    model.model.embed_tokens.weight *= factor
    for block in model.model.layers:
        for writer in (block.self_attn.o_proj, block.mlp.down_proj):
            writer.weight *= factor
            if writer.bias is not None:
                writer.bias *= factor


@pytest.fixture(scope="module", params=ARCHITECTURES)
def model(request: pytest.FixtureRequest) -> nn.Module:
    # the constant in a norm's root is no part of these laws
    return tiny_model(request.param, rms_norm_eps=1e-12)


def gaps(model: nn.Module, rescale: Any, norm: Norm) -> dict[str, float]:
    """The largest change of each variable of a run but `state_norm`, which is the very length that the rescalings change."""
    rescaled = copy.deepcopy(model)
    rescale(rescaled, 4.0)
    ids = torch.tensor([SAMPLES[0].token_ids])
    with torch.no_grad():
        torch.testing.assert_close(rescaled(ids).logits, model(ids).logits, atol=1e-4, rtol=1e-5)
    runs = [ll.analyze(ll.LensModel.wrap(each), SAMPLES, norm=norm, kl_from_layer=2, top_k=3) for each in (model, rescaled)]
    assert runs[0].data.data_vars.keys() == runs[1].data.data_vars.keys()
    names = [name for name in (*map(str, runs[0].data.data_vars), "entropy_change") if name != "state_norm"]
    return {name: float(np.nanmax(np.abs(np.subtract(*(run.values(name).values.astype(float) for run in runs))))) for name in names}


@pytest.mark.parametrize("norm", ["final", "matched"])
@pytest.mark.parametrize("rescale", [rescale_norm_gains, last_gain, stream])
def test_no_number_changes_with_a_rescaling_that_no_output_of_the_model_shows(model: nn.Module, rescale: Any, norm: Norm) -> None:
    assert {name: gap for name, gap in gaps(model, rescale, norm).items() if gap > 1e-3} == {}


@pytest.mark.parametrize("rescale", [rescale_norm_gains, last_gain, stream])
def test_norm_none_changes_with_each_of_these_rescalings(model: nn.Module, rescale: Any) -> None:
    """So the laws above are laws of the norms, and not of rescalings too small to see."""
    assert gaps(model, rescale, "none")["entropy_change"] > 0.05
