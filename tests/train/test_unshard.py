"""A copy without values, and the model again once it is filled."""

from __future__ import annotations

import pytest
import torch

from layerlens.train.unshard import meta_copy
from tests.support.tiny_models import tiny_model


@pytest.mark.parametrize("tied", [True, False])
def test_meta_copy_filled_again_gives_the_logits_of_the_model(tied: bool) -> None:
    model = tiny_model("qwen3", tied=tied)
    copied = meta_copy(model)
    assert all(weight.is_meta for weight in copied.parameters())
    assert (copied.lm_head.weight is copied.model.embed_tokens.weight) == tied
    copied.load_state_dict(model.state_dict(), assign=True)
    copied.tie_weights()
    ids = torch.arange(8, 20)[None]
    assert torch.equal(copied(ids).logits, model(ids).logits)
