"""The forward that stops after a layer leaves the model as it was."""

from __future__ import annotations

import pytest
import torch

from layerlens.errors import SelectionError
from layerlens.models.truncate import truncated_at
from tests.support.architectures import tiny_architecture
from tests.support.tiny_models import random_ids, tiny_model


def test_truncated_at_restores_all_blocks_after_an_error() -> None:
    model = tiny_model("qwen3")
    ids = torch.tensor([random_ids(5)])
    before = model(ids).logits
    with pytest.raises(RuntimeError), truncated_at(model, 2):
        raise RuntimeError
    assert len(model.model.layers) == 4
    assert torch.equal(model(ids).logits, before)
    with pytest.raises(SelectionError, match=r"1\.\.4"), truncated_at(model, 5):
        pass


def test_router_logits_collected_in_the_cut_are_collected_from_all_blocks_afterwards() -> None:
    ids = torch.tensor([random_ids(5)])
    whole = tiny_architecture("qwen3_moe")(ids, output_router_logits=True)  # whose first block has no router
    model = tiny_architecture("qwen3_moe")
    with truncated_at(model, 2):
        assert len(model(ids, output_router_logits=True).router_logits) == 1
    after = model(ids, output_router_logits=True)
    assert len(after.router_logits) == 3
    assert torch.equal(after.aux_loss, whole.aux_loss)
