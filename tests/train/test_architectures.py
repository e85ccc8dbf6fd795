"""BuPO on architectures whose blocks are not Llama's: mixtures, post-norms, linear attention, factors and parallel blocks."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from layerlens.train.trainer import LAYER
from tests.support.architectures import tiny_architecture
from tests.support.training import fixed_batch, make_trainer

pytestmark = pytest.mark.filterwarnings("default::FutureWarning")  # of TRL and transformers, about names they are to drop

NAMES = ("qwen3_moe", "gemma3_text", "olmo2", "gpt_oss", "qwen3_5_text", "granite", "cohere2", "lfm2")


@pytest.mark.parametrize("name", NAMES)
def test_loss_and_gradients_of_the_last_layer_with_final_norm_are_grpo_bit_for_bit(name: str, tmp_path: Path) -> None:
    found = []
    for layer in (None, 4):
        settings = {} if layer is None else {"internal_layer": layer, "internal_rollouts": -1, "internal_norm": "final"}
        trainer = make_trainer(tmp_path, tiny_architecture(name), **settings)
        assert len(trainer.model.model.layers) == 4
        trainer.current_gradient_accumulation_steps = 1
        trainer.model.train()
        loss = trainer._compute_loss(trainer.model, fixed_batch() | ({} if layer is None else {LAYER: torch.tensor(layer)}))
        loss.backward()
        found.append((loss.detach(), {each: weight.grad for each, weight in trainer.model.named_parameters()}))
    (grpo, grpo_gradients), (bupo, bupo_gradients) = found
    assert torch.equal(grpo, bupo)
    assert any(gradient is not None and gradient.any() for gradient in grpo_gradients.values())
    for each, gradient in grpo_gradients.items():
        assert (gradient is None) == (bupo_gradients[each] is None), each
        assert gradient is None or torch.equal(gradient, bupo_gradients[each]), each


@pytest.mark.parametrize("name", NAMES)
def test_training_does_not_move_blocks_above_the_layer(name: str, tmp_path: Path) -> None:
    model = tiny_architecture(name)
    before = {each: weight.clone() for each, weight in model.named_parameters()}
    trainer = make_trainer(tmp_path, model, internal_layer=2, internal_rollouts=-1, max_steps=2)
    trainer.train()
    moved = {each for each, weight in trainer.model.named_parameters() if not torch.equal(weight, before[each])}
    assert not {each for each in moved if each.startswith(("model.layers.2", "model.layers.3"))}
    assert {"model.layers.0", "model.layers.1"} <= {each[:14] for each in moved}
