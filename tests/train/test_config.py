"""What is refused when a configuration is built or a trainer is made, and runs without an internal phase."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from transformers import OpenAIGPTConfig, OpenAIGPTLMHeadModel
from trl import GRPOConfig, GRPOTrainer

from layerlens.errors import ModelLayoutError, TrainingError
from layerlens.results.training_log import open_training
from layerlens.train import BuPOConfig
from layerlens.train.grpo_options import checkpoints_reentrantly, refusals
from tests.support.tiny_models import tiny_model
from tests.support.training import make_trainer

pytestmark = pytest.mark.filterwarnings("default")  # TRL's and accelerate's own


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"internal_layer": 2}, "needs internal_rollouts"),
        ({"internal_rollouts": 3}, "needs internal_layer"),
        ({"internal_layer": 0, "internal_rollouts": 3}, "count from 1"),
        ({"internal_layer": 0, "internal_rollouts": 0}, "count from 1"),
        ({"internal_layer": "six", "internal_rollouts": 3}, "from 1, auto, none, or a file of `layerlens select --json`; 'six' is no file"),
        ({"internal_layer": 2, "internal_rollouts": 3, "internal_norm": "rms"}, "internal_norm is one of"),
        ({"internal_layer": 2, "internal_rollouts": 3, "internal_schedule": "1:2"}, "either internal_schedule"),
        ({"internal_schedule": "1:-1,2:3"}, "only the last"),
        ({"internal_schedule": "1;2"}, "a schedule is like"),
        ({"layer_lr_decay": 0.1}, "needs layer_lr_above"),
        ({"layer_lr_decay": 0.1, "layer_lr_factors": "1:2"}, "either layer_lr_factors"),
        ({"layer_lr_above": 3}, "layer_lr_above needs layer_lr_decay"),
        ({"internal_layer": 2, "internal_rollouts": -2}, "at least one rollout"),
        ({"internal_layer": "auto"}, "needs internal_rollouts"),
        ({"internal_schedule": "2:3", "internal_rollouts": 3}, "either internal_schedule"),
        ({"internal_schedule": "4:2,2:3", "freeze_layers": 2}, "freeze_layers=2 leaves nothing but the unembedding to train in layer 2"),
        ({"monitor_every": -1}, "monitor_every must be 0 or more"),
        (
            {"internal_layer": "auto", "internal_rollouts": 3, "internal_rule": "guess"},
            "internal_rule is one of boundary, settled, skill, settling_depth, agreement, entropy_drop",
        ),
        ({"internal_layer": "auto", "internal_rollouts": 3, "internal_samples": 0}, "internal_samples must be at least 1"),
        ({"monitor_every": 1, "max_completion_length": None}, "set max_completion_length"),
        ({"internal_layer": "auto", "internal_rollouts": 3, "max_completion_length": None}, "set max_completion_length"),
        ({"monitor_layer": 2}, "monitor_layer needs monitor_every: the optimizer steps"),
        ({"monitor_layer": 0, "monitor_every": 1}, "monitor_layer must be a layer from 1, got 0"),
        ({"internal_schedule": "1:2,3:2", "layer_lr_decay": 0.1}, "needs layer_lr_above"),
        ({"train_layers": "3", "layer_lr_factors": "3-4:0.1"}, "layer_lr_factors names layer 4, which train_layers=3 freezes"),
        (
            {"train_layers": "1-3", "layer_lr_factors": "1-99999999999:0.1"},
            "layer_lr_factors names layer 4, which train_layers=1-3 freezes",
        ),
        ({"train_layers": "3", "layer_lr_decay": 0.1, "layer_lr_above": 2}, "layer_lr_decay is a factor of layers that train_layers may"),
        ({"internal_layer": "none", "layer_lr_decay": 0.1}, "needs layer_lr_above"),
        ({"internal_layer": "auto", "internal_rollouts": 0, "layer_lr_decay": 0.1}, "needs layer_lr_above"),
        ({"layer_lr_above": 2, "layer_lr_decay": -0.1}, "layer_lr_decay must be 0 or more"),
        ({"layer_lr_factors": "1-2:-1"}, r"factors of 0 or more, got '1-2:-1'"),
        ({"layer_lr_factors": "1-2:1.0.0"}, "layer_lr_factors is like"),
        ({"loss_type": "best"}, "loss_type is one of grpo, bnpo, .*, got 'best'"),
        ({"scale_rewards": "yes"}, "scale_rewards is one of group, batch, none, got 'yes'"),
        ({"importance_sampling_level": "word"}, "importance_sampling_level is one of token, sequence"),
        ({"multi_objective_aggregation": "sum"}, "multi_objective_aggregation is one of"),
        ({"vllm_importance_sampling_mode": "token"}, "vllm_importance_sampling_mode is one of token_truncate"),
        ({"learning_rate": -1e-5}, "learning_rate must be at least 0, got -1e-05"),
        ({"steps_per_generation": 0}, "steps_per_generation must be at least 1, got 0"),
        ({"num_iterations": 0}, "num_iterations must be at least 1, got 0"),
        ({"temperature": 0.0}, "temperature must be above 0, got 0"),
    ],
)
def test_contradictions_are_refused_when_the_config_is_built(settings: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match=message):
        BuPOConfig(output_dir=str(tmp_path), use_cpu=True, bf16=False, report_to="none", **settings)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"use_liger_kernel": True}, "Liger replaces the modules"),
        ({"torch_compile": True}, "torch_compile fixes one forward pass"),
        ({"torch_compile_backend": "eager"}, "torch_compile fixes one forward pass"),
        ({"torch_compile_mode": "default"}, "torch_compile fixes one forward pass"),
        ({"beta": 0.1}, "beta > 0 needs internal_norm='final'"),
        ({"ddp_find_unused_parameters": False}, "leave ddp_find_unused_parameters unset"),
        ({"ddp_static_graph": True}, "set ddp_static_graph=False"),
    ],
)
def test_what_an_internal_phase_cannot_honour_is_refused_and_plain_grpo_takes_it(
    settings: dict[str, Any], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("ACCELERATE_DYNAMO_BACKEND", "ACCELERATE_DYNAMO_MODE"):
        monkeypatch.setenv(name, "no")  # restored afterwards: transformers sets them
    with pytest.raises(TrainingError, match=message):
        build(tmp_path, internal_layer=2, internal_rollouts=3, **settings)
    for name in ("ACCELERATE_DYNAMO_BACKEND", "ACCELERATE_DYNAMO_MODE"):
        monkeypatch.setenv(name, "no")
    build(tmp_path, internal_layer=2, internal_rollouts=0, **settings)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"internal_layer": 2, "internal_rollouts": 3, "weight_decay": 0.0, "zero_stage": 3}, "never run with DeepSpeed's ZeRO-3"),
        ({"internal_rollouts": 0, "zero_stage": 3}, None),
        ({"internal_layer": "auto", "internal_rollouts": 3}, "cannot read DeepSpeed's model"),
        ({"monitor_every": 5}, "the monitor works with DDP and FSDP2, not with DeepSpeed"),
        ({"internal_layer": 2, "internal_rollouts": 3, "weight_decay": 0.1}, "would decay: set weight_decay=0, or decay_above=True"),
        ({"internal_layer": 2, "internal_rollouts": 3, "weight_decay": 0.0}, None),
        ({"internal_layer": 2, "internal_rollouts": 3, "weight_decay": 0.1, "decay_above": True}, None),
        ({"layer_lr_factors": "1-2:0.5", "optimizer": True}, "take `optimizer` out of DeepSpeed's file, or leave layer_lr_factors"),
        ({"layer_lr_decay": 0.0, "layer_lr_above": 2, "optimizer": True}, "with one learning rate for all layers"),
        ({"layer_lr_factors": "1-2:0.5"}, None),
        ({"optimizer": True}, None),
    ],
)
def test_what_deepspeed_cannot_do_is_refused(
    settings: dict[str, Any], message: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    built = GRPOConfig.__post_init__

    def with_deepspeed(self: GRPOConfig) -> None:
        """What transformers makes of `deepspeed` if DeepSpeed is installed."""
        sections, self.deepspeed = self.deepspeed, None
        built(self)
        stage = sections["zero_optimization"]["stage"]
        self.deepspeed_plugin = SimpleNamespace(zero_stage=stage, hf_ds_config=SimpleNamespace(config=sections))

    monkeypatch.setattr("layerlens.train.grpo_options.find_spec", lambda name: name == "deepspeed")
    monkeypatch.setattr(GRPOConfig, "__post_init__", with_deepspeed)
    sections: dict[str, Any] = {"zero_optimization": {"stage": settings.get("zero_stage", 2)}}
    sections |= {"optimizer": {"type": "AdamW"}} if "optimizer" in settings else {}
    others = {name: value for name, value in settings.items() if name not in ("zero_stage", "optimizer")}
    with pytest.raises(TrainingError, match=message) if message else nullcontext():
        build(tmp_path, deepspeed=sections, **others)


def test_a_layer_that_the_model_lacks_is_refused_before_anything_is_loaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(GRPOTrainer, "__init__", None)
    tiny_model("qwen3").config.save_pretrained(tmp_path / "model")  # a configuration without weights
    with pytest.raises(TrainingError, match="4 layers; the internal phase asks for layer 9"):
        make_trainer(tmp_path, str(tmp_path / "model"), internal_layer=9, internal_rollouts=1)
    with pytest.raises(TrainingError, match="4 layers; the internal phase asks for layer 9"):
        make_trainer(tmp_path, internal_layer=9, internal_rollouts=1)
    with pytest.raises(TrainingError, match="4 layers; the internal phase asks for layer 5"):
        make_trainer(tmp_path, internal_schedule="2:1,5:1")
    with pytest.raises(TrainingError, match="4 layers; monitor_layer asks for layer 5"):
        make_trainer(tmp_path, monitor_layer=5, monitor_every=1)
    with pytest.raises(TrainingError, match="4 layers; internal_layer asks for layer 5"):
        make_trainer(tmp_path, internal_layer=5, internal_rollouts=0)


@pytest.mark.parametrize("settings", [{"layer_lr_above": 4}, {"layer_lr_above": 0}, {"internal_layer": 4, "internal_rollouts": 1}])
def test_slower_layers_that_are_not_there_are_refused(settings: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match=r"layer_lr_decay acts above a layer in 1\.\.3"):
        make_trainer(tmp_path, layer_lr_decay=0.1, **settings)
    with pytest.raises(TrainingError, match=r"layers 3-5 are not in 1\.\.4"):
        make_trainer(tmp_path, layer_lr_factors="3-5:0.1")


@pytest.mark.parametrize(
    "settings",
    [
        {"internal_layer": "auto", "internal_rollouts": 1},
        {"internal_loss": "distill", "distill_layers": 2},
        {"token_signal": "kl_to_final", "token_layer": 2},
    ],
)
def test_what_reads_layers_is_refused_on_a_model_spread_over_devices(settings: dict[str, Any], tmp_path: Path) -> None:
    model = tiny_model("qwen3")
    model.hf_device_map = {"model.embed_tokens": 0, "model.layers": 0, "model.norm": 1, "lm_head": 1}
    with pytest.raises(TrainingError, match="device_map spreads this one over 0, 1: load it without device_map"):
        make_trainer(tmp_path, model, **settings)


def test_an_architecture_without_a_cut_is_refused(tmp_path: Path) -> None:
    config = OpenAIGPTConfig(vocab_size=211, n_embd=32, n_layer=2, n_head=2, n_positions=64, bos_token_id=1, eos_token_id=2)
    with pytest.raises(ModelLayoutError, match="openai-gpt") as refusal:
        make_trainer(tmp_path, OpenAIGPTLMHeadModel(config), internal_layer=1, internal_rollouts=1)
    assert "\n" not in str(refusal.value)


# ---- no internal phase


def build(folder: Path, **settings: Any) -> BuPOConfig:
    return BuPOConfig(output_dir=str(folder), use_cpu=True, bf16=False, report_to="none", **settings)


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"internal_rollouts": 0},
        {"internal_layer": 2, "internal_rollouts": 0},
        {"internal_layer": "auto", "internal_rollouts": 0},
        {"internal_layer": "none", "internal_rollouts": 5},
        {"internal_layer": "none", "internal_schedule": "1:2,3:4"},
        {"internal_schedule": "none"},
        {"internal_schedule": []},
        {"internal_schedule": "1:2,3:4", "internal_rollouts": 0},
        {"internal_layer": 2, "internal_rollouts": 0, "use_liger_kernel": True},
    ],
)
def test_zero_internal_rollouts_are_plain_grpo(settings: dict[str, Any], tmp_path: Path) -> None:
    args = build(tmp_path, **settings)
    assert not args.trains_internally
    assert args.schedule(auto_layer=3).phases == ()


def test_training_with_zero_internal_rollouts_is_grpo_bit_for_bit_and_monitors_the_layer(tmp_path: Path) -> None:
    named = make_trainer(tmp_path / "a", internal_layer=2, internal_rollouts=0, monitor_every=2, monitor_problems=2, monitor_repeats=1)
    named.train()
    plain = make_trainer(tmp_path / "b")  # which seeds sampling
    plain.train()
    assert ("final policy (GRPO)", "throughout") in named.plan()
    log = open_training(tmp_path / "a")
    assert (log.internal, log.schedule["phases"], log.watched) == ([], [], 2)
    for (name, a), b in zip(named.model.named_parameters(), plain.model.parameters(), strict=True):
        assert torch.equal(a, b), name


@pytest.mark.parametrize("name", ["gradient_checkpointing_kwargs", "activation_checkpointing_kwargs"])
def test_reentrant_checkpointing_of_an_internal_phase_is_refused_on_several_processes(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    args = build(tmp_path, internal_layer=2, internal_rollouts=1, **{name: {"use_reentrant": True}})
    assert list(refusals(args)) == []
    monkeypatch.setattr(BuPOConfig, "world_size", 2)
    assert [message for message in refusals(args) if "set use_reentrant to False" in message]


def test_reentrant_checkpointing_is_seen_where_transformers_has_the_older_names_alone() -> None:
    older = SimpleNamespace(gradient_checkpointing=True, gradient_checkpointing_kwargs={"use_reentrant": True})
    assert checkpoints_reentrantly(older)
    assert not checkpoints_reentrantly(SimpleNamespace(gradient_checkpointing=True, gradient_checkpointing_kwargs=None))
