"""Layers that are frozen, learn slower, or decay without a gradient."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from layerlens.errors import TrainingError
from tests.support.tiny_models import tiny_model
from tests.support.training import make_trainer

pytestmark = pytest.mark.filterwarnings("default")  # TRL's and accelerate's own


def test_decay_above_lets_weights_above_the_layer_decay(tmp_path: Path) -> None:
    model = tiny_model("llama")
    before = model.model.layers[3].mlp.up_proj.weight.clone()
    make_trainer(tmp_path, model, internal_layer=2, internal_rollouts=-1, max_steps=1, decay_above=True).train()
    torch.testing.assert_close(model.model.layers[3].mlp.up_proj.weight, before * (1 - 1e-2 * 0.1))


def test_frozen_layers_and_layers_with_rate_zero_do_not_move(tmp_path: Path) -> None:
    model = tiny_model("qwen3")
    before = {name: weight.clone() for name, weight in model.named_parameters()}
    trainer = make_trainer(tmp_path, model, freeze_layers=1, layer_lr_factors="3-4:0.0", weight_decay=0.0, max_steps=2)
    assert ("layer 1", "frozen") in trainer.plan()
    assert ("layers 3-4", "learning rate x 0") in trainer.plan()
    trainer.train()
    moved = {name for name, weight in model.named_parameters() if not torch.equal(weight, before[name])}
    assert moved
    assert all(name.startswith(("model.layers.1.", "model.norm", "lm_head")) for name in moved)
    rates = {group["layer_lr_factor"]: group["lr"] for group in trainer.optimizer.optimizer.param_groups}
    assert rates == {0.0: 0.0, 1.0: 1e-2}


def test_the_rate_that_is_logged_is_that_of_unscaled_layers_and_a_resumed_run_keeps_the_others(tmp_path: Path) -> None:
    settings = {"save_strategy": "steps", "save_steps": 1}
    trainer = make_trainer(tmp_path, layer_lr_factors="1:0.5", max_steps=1, **settings)
    trainer.train()
    assert trainer.state.log_history[0]["learning_rate"] == 1e-2
    for other, told in (
        ({"layer_lr_factors": "1:0.1"}, r'layer_lr_factors was \{"1": 0\.5\} and is \{"1": 0\.1\}'),
        ({"layer_lr_factors": "1:0.5", "freeze_layers": 1}, "freeze_layers was 0 and is 1"),
    ):
        with pytest.raises(TrainingError, match=f"another schedule: {told}: restore its settings, or take a new output_dir"):
            make_trainer(tmp_path, max_steps=2, **settings, **other).train(resume_from_checkpoint=True)


def test_factors_multiply_the_rates_of_an_optimizer_that_is_given_once(tmp_path: Path) -> None:
    model = tiny_model("qwen3")
    slow, fast = ([weight for name, weight in model.named_parameters() if ("norm" in name) is is_norm] for is_norm in (True, False))
    optimizer = torch.optim.AdamW([{"params": slow, "lr": 1e-4}, {"params": fast, "lr": 4e-3}])
    trainer = make_trainer(tmp_path, model, layer_lr_factors="1-2:0.5", max_steps=1, optimizers=(optimizer, None))
    for _ in range(2):
        trainer.train()
        assert [group["lr"] for group in optimizer.param_groups] == [1e-4, 0.5e-4, 4e-3, 2e-3]


def test_a_schedule_that_was_made_before_the_groups_are_split_is_refused(tmp_path: Path) -> None:
    model = tiny_model("qwen3")
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
    given = (optimizer, torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 0.5))
    with pytest.raises(TrainingError, match=r"give the optimizer alone, optimizers=\(optimizer, None\), and choose lr_scheduler_type"):
        make_trainer(tmp_path, model, layer_lr_factors="1-2:0.5", max_steps=1, optimizers=given).train()
    assert make_trainer(tmp_path, model, max_steps=1, optimizers=given).train().global_step == 1


@pytest.mark.parametrize("layer", [2, "auto"])
def test_layer_lr_decay_acts_above_the_internal_layer(layer: int | str, tmp_path: Path) -> None:
    auto = {"internal_rule": "boundary", "internal_samples": 4} if layer == "auto" else {}
    trainer = make_trainer(tmp_path, internal_layer=layer, internal_rollouts=1, layer_lr_decay=0.1, **auto)
    [(trained, _)] = trainer.schedule.phases
    assert trainer.layer_factors == {number: 1.0 if number <= trained else 0.1 for number in range(1, 5)}
    assert any(how == "learning rate x 0.1" for _, how in trainer.plan())
