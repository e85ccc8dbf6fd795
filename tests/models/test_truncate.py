"""The forward that stops after a layer leaves the model as it was."""

from __future__ import annotations

import pytest
import torch

from layerlens.errors import SelectionError
from layerlens.models.truncate import truncated_at
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
