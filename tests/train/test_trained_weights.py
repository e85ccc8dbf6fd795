"""Layers that alone are trained."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from peft import LoraConfig
from trl import GRPOConfig, GRPOTrainer

from layerlens.errors import TrainingError
from layerlens.results.training_log import open_training
from layerlens.train import BuPOConfig, BuPOTrainer
from layerlens.train.trained_weights import layers_text, parse_layers
from tests.support.tiny_models import tiny_model, tiny_tokenizer
from tests.support.training import make_trainer, prompts, reward
from tests.train.test_drop_in import SETTINGS

pytestmark = pytest.mark.filterwarnings("default")  # TRL's and accelerate's own


@given(st.sets(st.integers(1, 40), min_size=1))
def test_layers_are_read_as_they_are_written(layers: set[int]) -> None:
    assert parse_layers(layers_text(sorted(layers))) == tuple(sorted(layers)) == parse_layers(sorted(layers))


@pytest.mark.parametrize(("value", "layers"), [("all", None), (7, (7,)), ("2-4, 3", (2, 3, 4)), ("9,1-2", (1, 2, 9))])
def test_layers_may_be_a_number_a_list_or_ranges(value: Any, layers: tuple[int, ...] | None) -> None:
    assert parse_layers(value) == layers


@pytest.mark.parametrize("value", ["0", "3-2", "x", "", "1;2", "-1"])
def test_what_names_no_layers_is_refused(value: str, tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match="layers are like 7 or 1-3,7, counted from 1, or all; got"):
        make_trainer(tmp_path, train_layers=value)


@pytest.mark.parametrize("more", [{}, {"gradient_checkpointing": True}, {"beta": 0.1}])
@pytest.mark.parametrize("tied", [True, False])
def test_only_the_named_blocks_move_and_weight_decay_leaves_the_others(more: dict[str, Any], tied: bool, tmp_path: Path) -> None:
    model = tiny_model("llama", tied=tied)
    if "beta" in more:
        model.save_pretrained(tmp_path / "model")  # the reference is loaded by name
        model.config._name_or_path = str(tmp_path / "model")
    before = {name: weight.clone() for name, weight in model.named_parameters()}
    trainer = make_trainer(tmp_path, model, train_layers="2,4", weight_decay=0.5, **more)
    assert trainer.plan() == [
        ("final policy (GRPO)", "throughout"), ("layer 1", "frozen"), ("layer 2", "learning rate x 1"), ("layer 3", "frozen"),
        ("layer 4", "learning rate x 1"), ("embedding, norm and unembedding", "frozen"),
    ]  # fmt: skip
    trainer.train()
    moved = {name for name, weight in model.named_parameters() if not torch.equal(weight, before[name])}
    assert moved == {name for name in before if name.startswith(("model.layers.1.", "model.layers.3."))}
    assert json.loads((tmp_path / "schedule.json").read_text())["train_layers"] == "2,4"


def test_the_gradient_of_a_block_alone_is_its_part_of_grpos(tmp_path: Path) -> None:
    first_steps = []
    for layers in ("3", "all"):
        model = tiny_model("qwen3")
        before = [weight.clone() for weight in model.model.layers[2].parameters()]
        make_trainer(tmp_path / layers, model, train_layers=layers, optim="sgd", max_grad_norm=0.0, max_steps=1, weight_decay=0.0).train()
        first_steps.append([weight.detach() - old for weight, old in zip(model.model.layers[2].parameters(), before, strict=True)])
    assert any(step.any() for step in first_steps[0])
    for alone, together in zip(*first_steps, strict=True):
        assert torch.equal(alone, together)


def test_all_layers_are_grpo_bit_for_bit(tmp_path: Path) -> None:
    ended = []
    for trainer_class, args in (
        (BuPOTrainer, BuPOConfig(str(tmp_path / "ours"), train_layers="all", **SETTINGS)),
        (GRPOTrainer, GRPOConfig(str(tmp_path / "theirs"), **SETTINGS)),
    ):
        trainer = trainer_class(tiny_model("qwen3"), reward, args, prompts(), processing_class=tiny_tokenizer(None))
        trainer.train()
        ended.append(trainer.model)
    for (name, a), b in zip(ended[0].named_parameters(), ended[1].parameters(), strict=True):
        assert torch.equal(a, b), name


def test_a_run_of_one_layer_resumes_exactly_and_refuses_other_layers(tmp_path: Path) -> None:
    settings: dict[str, Any] = {"train_layers": "2", "save_strategy": "steps", "save_steps": 1, "num_iterations": 2}
    whole, stopped = tiny_model("qwen3"), tiny_model("qwen3")
    make_trainer(tmp_path / "whole", whole, max_steps=3, **settings).train()
    make_trainer(tmp_path / "stopped", stopped, max_steps=1, **settings).train()
    resumed = make_trainer(tmp_path / "stopped", stopped, max_steps=3, **settings)
    resumed.train(resume_from_checkpoint=True)
    resumed.save_state()
    for (name, a), b in zip(whole.named_parameters(), resumed.model.parameters(), strict=True):
        assert torch.equal(a, b), name
    assert open_training(tmp_path / "stopped").objective == "layer 2 alone trained"
    with pytest.raises(TrainingError, match="had another schedule"):
        make_trainer(tmp_path / "stopped", max_steps=4, **settings | {"train_layers": "3"}).train(resume_from_checkpoint=True)


def test_adapters_of_the_named_blocks_alone_are_trained(tmp_path: Path) -> None:
    from peft import LoraConfig

    everywhere = LoraConfig(r=2, target_modules=["q_proj"])
    trainer = make_trainer(tmp_path, train_layers="3", peft_config=everywhere)
    learns = {name for name, weight in trainer.model.named_parameters() if weight.requires_grad}
    assert learns
    assert all(".layers.2." in name and "lora" in name for name in learns)
    with pytest.raises(TrainingError, match=r"no weight of layer 4 is trained: give adapters to these blocks"):
        make_trainer(tmp_path, train_layers="4", peft_config=LoraConfig(r=2, target_modules=["q_proj"], layers_to_transform=[0]))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"train_layers": "5"}, "the model has 4 layers; train_layers asks for layer 5"),
        ({"train_layers": "2", "freeze_layers": 1}, "give either train_layers or freeze_layers"),
        (
            {"train_layers": "3", "internal_layer": 2, "internal_rollouts": 1},
            "train_layers=3 leaves nothing to train in layer 2's policy: the layers above it do not run",
        ),
        (
            {"train_layers": "3", "gradient_checkpointing": True, "gradient_checkpointing_kwargs": {"use_reentrant": True}},
            "reentrant checkpointing gives no gradient behind frozen weights",
        ),
    ],
)
def test_contradictions_are_refused(settings: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match=message):
        make_trainer(tmp_path, **settings)


def test_an_internal_phase_trains_the_named_blocks_below_its_layer(tmp_path: Path) -> None:
    model = tiny_model("qwen3")
    before = {name: weight.clone() for name, weight in model.named_parameters()}
    make_trainer(tmp_path, model, train_layers="1,4", internal_layer=2, internal_rollouts=-1).train()
    moved = {name for name, weight in model.named_parameters() if not torch.equal(weight, before[name])}
    assert moved == {name for name in before if name.startswith("model.layers.0.")}


@pytest.mark.parametrize(
    ("dtype", "adapters", "warned"), [(torch.bfloat16, False, True), (torch.float32, False, False), (torch.bfloat16, True, False)]
)
def test_weights_trained_in_16_bits_are_warned_of(
    dtype: torch.dtype, adapters: bool, warned: bool, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    lora = LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM") if adapters else None
    with caplog.at_level(logging.WARNING, "layerlens.train"):
        make_trainer(tmp_path, tiny_model("qwen3").to(dtype), learning_rate=1e-6, peft_config=lora)
    told = [record.getMessage() for record in caplog.records if record.name == "layerlens.train"]
    rounding = "weights are trained in bfloat16, which rounds a step away that changes a weight by less than 0.002 of its size; at "
    assert [message.startswith(f"{rounding}learning_rate 1e-06 that may be most steps: ") for message in told] == [True] * warned


def test_float32_copies_that_fsdp_keeps_are_not_warned_of(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    initialise = GRPOTrainer.__init__

    def sharding(self: GRPOTrainer, *args: Any, **options: Any) -> None:
        initialise(self, *args, **options)
        self.is_fsdp_enabled = True

    monkeypatch.setattr(GRPOTrainer, "__init__", sharding)
    for mixed, warnings in ((True, 0), (False, 1)):
        caplog.clear()
        make_trainer(tmp_path, tiny_model("qwen3").to(torch.bfloat16), bf16=mixed)
        assert len([record for record in caplog.records if record.name == "layerlens.train"]) == warnings
