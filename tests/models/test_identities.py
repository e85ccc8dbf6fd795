"""Models that break an identity of their layout are refused, with the figures, when they are wrapped."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

import layerlens as ll
from layerlens.errors import ModelLayoutError, ModelLoadError
from layerlens.models import check_identities, find_decoder_parts
from tests.support.tiny_models import tiny_model


class Louder(nn.Module):
    """A module whose output is scaled: for the unembedding, logits that are not E_u N(h)."""

    def __init__(self, module: nn.Module, by: float):
        super().__init__()
        self.module, self.by = module, by

    @property
    def weight(self) -> torch.Tensor:
        return self.module.weight

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.module(x) * self.by


def test_scaled_logits_are_refused() -> None:
    model = tiny_model()
    model.lm_head = Louder(model.lm_head, 0.9)
    with pytest.raises(ModelLayoutError, match=r"miss the model's own logits by 0\.11 of their size \(tolerance 0\.0001\)"):
        ll.LensModel.wrap(model, name="louder")
    assert not check_identities(find_decoder_parts(model)).ok


@pytest.mark.parametrize("layer", [1, 3])
def test_block_with_an_undescribed_addend_is_refused(layer: int) -> None:
    model = tiny_model("llama")
    block = model.model.layers[layer - 1]
    forward = type(block).forward

    class Altered(type(block)):
        def forward(self, hidden_states: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
            return forward(self, hidden_states, *args, **kwargs) + 0.1 * hidden_states

    block.__class__ = Altered
    with pytest.raises(ModelLayoutError, match=rf"misses resid_post by 0\.\d+ of its size in block {layer} "):
        ll.LensModel.wrap(model)
    assert ll.LensModel.wrap(model, check=False).n_layers == 4


def test_stream_changed_between_blocks_is_refused() -> None:
    model = tiny_model()
    block = model.model.layers[1]
    block.register_forward_pre_hook(lambda _m, args, kwargs: ((args[0] * 1.2, *args[1:]), kwargs), with_kwargs=True)
    with pytest.raises(ModelLayoutError, match="block 2"):
        ll.LensModel.wrap(model)


def test_undescribed_residual_multiplier_is_refused() -> None:
    """As in Granite: what self_attn returns is not what it adds."""
    model = tiny_model("qwen2")
    block = model.model.layers[0]
    forward = type(block).forward
    handle: list[Any] = []

    class Scaled(type(block)):
        def forward(self, hidden_states: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
            return hidden_states + 0.5 * (forward(self, hidden_states, *args, **kwargs) - hidden_states)

    block.__class__ = Scaled
    with pytest.raises(ModelLayoutError, match="block 1"):
        ll.LensModel.wrap(model)
    assert not handle


def test_meta_weights_are_refused() -> None:
    model = tiny_model()
    with torch.device("meta"):
        ghost = type(model)(model.config)
    with pytest.raises(ModelLoadError, match="not in memory"):
        ll.LensModel.wrap(ghost)
