"""What is refused when a configuration is built, when a trainer is made, and when TRL is not the one that BuPO knows."""

from __future__ import annotations

from contextlib import nullcontext
from importlib.metadata import PackageNotFoundError
from inspect import signature
from pathlib import Path
from typing import Any

import pytest
from transformers import GPT2Config, GPT2LMHeadModel
from trl import GRPOConfig, GRPOTrainer

import layerlens.train
from layerlens.errors import ModelLayoutError, TrainingError
from layerlens.train import BuPOConfig
from layerlens.train.seam import require_seam
from layerlens.train.trainer import FORWARD_EXTRAS
from tests.support.tiny_models import tiny_model
from tests.support.training import make_trainer

pytestmark = pytest.mark.filterwarnings("default")  # TRL's and accelerate's own


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"internal_layer": 2}, "needs internal_steps"),
        ({"internal_steps": 3}, "needs internal_layer"),
        ({"internal_layer": 0, "internal_steps": 3}, "count from 1"),
        ({"internal_layer": "six", "internal_steps": 3}, "from 1, 'auto' or 'none'"),
        ({"internal_layer": 2, "internal_steps": 3, "internal_norm": "rms"}, "internal_norm is one of"),
        ({"internal_layer": 2, "internal_steps": 3, "internal_schedule": "1:2"}, "either internal_schedule"),
        ({"internal_schedule": "1:-1,2:3"}, "only the last"),
        ({"internal_schedule": "1;2"}, "a schedule is like"),
        ({"layer_lr_decay": 0.1}, "needs layer_lr_above"),
        ({"layer_lr_decay": 0.1, "layer_lr_factors": "1:2"}, "either layer_lr_factors"),
        ({"layer_lr_above": 3}, "layer_lr_above needs layer_lr_decay"),
        ({"internal_layer": 2, "internal_steps": 0}, "needs internal_steps"),
        ({"internal_layer": 2, "internal_steps": -2}, "at least one rollout step"),
        ({"internal_layer": "auto"}, "needs internal_steps"),
        ({"internal_schedule": "2:3", "internal_steps": 3}, "either internal_schedule"),
        ({"internal_schedule": "4:2,2:3", "freeze_layers": 2}, "freeze_layers=2 leaves nothing but the unembedding to train in layer 2"),
        ({"internal_layer": 2, "internal_steps": 3, "use_liger_kernel": True}, "leave use_liger_kernel off"),
        ({"monitor_steps": -1}, "monitor_steps must be 0 or more"),
        (
            {"internal_layer": "auto", "internal_steps": 3, "internal_rule": "guess"},
            "internal_rule is one of boundary, entropy_drop",
        ),
        ({"internal_layer": "auto", "internal_steps": 3, "internal_samples": 0}, "internal_samples must be at least 1"),
        ({"monitor_layer": 2}, "monitor_layer=2 .* needs monitor_steps above 0"),
        ({"monitor_layer": 0, "monitor_steps": 1}, "monitor_layer=0 must be a layer from 1"),
        ({"internal_schedule": "1:2,3:2", "layer_lr_decay": 0.1}, "needs layer_lr_above"),
        ({"internal_layer": "none", "layer_lr_decay": 0.1}, "needs layer_lr_above"),
        ({"layer_lr_above": 2, "layer_lr_decay": -0.1}, "layer_lr_decay must be 0 or more"),
        ({"layer_lr_factors": "1-2:-1"}, r"factors of 0 or more, got '1-2:-1'"),
        ({"layer_lr_factors": "1-2:1.0.0"}, "layer_lr_factors is like"),
    ],
)
def test_contradictions_are_refused_when_the_config_is_built(settings: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match=message):
        BuPOConfig(output_dir=str(tmp_path), use_cpu=True, bf16=False, report_to="none", **settings)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"internal_layer": "auto", "internal_steps": 3}, "can not look into DeepSpeed's model"),
        ({"monitor_steps": 5}, "the monitor works with DDP and FSDP2, not with DeepSpeed"),
        ({"internal_layer": 2, "internal_steps": 3, "weight_decay": 0.1}, "would decay: set weight_decay=0, or decay_above=True"),
        ({"internal_layer": 2, "internal_steps": 3, "weight_decay": 0.0}, None),
        ({"internal_layer": 2, "internal_steps": 3, "weight_decay": 0.1, "decay_above": True}, None),
    ],
)
def test_what_deepspeed_can_not_do_is_refused(
    settings: dict[str, Any], message: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    built = GRPOConfig.__post_init__

    def with_deepspeed(self: GRPOConfig) -> None:
        built(self)
        self.deepspeed_plugin = object()

    monkeypatch.setattr(GRPOConfig, "__post_init__", with_deepspeed)
    with pytest.raises(TrainingError, match=message) if message else nullcontext():
        BuPOConfig(output_dir=str(tmp_path), use_cpu=True, bf16=False, report_to="none", **settings)


def test_a_layer_that_the_model_lacks_is_refused_before_anything_is_loaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(GRPOTrainer, "__init__", None)
    tiny_model("qwen3").config.save_pretrained(tmp_path / "model")  # a configuration without weights
    with pytest.raises(TrainingError, match="4 layers; the internal phase asks for layer 9"):
        make_trainer(tmp_path, str(tmp_path / "model"), internal_layer=9, internal_steps=1)
    with pytest.raises(TrainingError, match="4 layers; the internal phase asks for layer 9"):
        make_trainer(tmp_path, internal_layer=9, internal_steps=1)
    with pytest.raises(TrainingError, match="4 layers; the internal phase asks for layer 5"):
        make_trainer(tmp_path, internal_schedule="2:1,5:1")
    with pytest.raises(TrainingError, match="4 layers; monitor_layer asks for layer 5"):
        make_trainer(tmp_path, monitor_layer=5, monitor_steps=1)


@pytest.mark.parametrize("settings", [{"layer_lr_above": 4}, {"layer_lr_above": 0}, {"internal_layer": 4, "internal_steps": 1}])
def test_slower_layers_that_are_not_there_are_refused(settings: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match=r"layer_lr_decay acts above a layer in 1\.\.3"):
        make_trainer(tmp_path, layer_lr_decay=0.1, **settings)
    with pytest.raises(TrainingError, match=r"layers 3-5 are not in 1\.\.4"):
        make_trainer(tmp_path, layer_lr_factors="3-5:0.1")


def test_an_architecture_without_a_cut_is_refused(tmp_path: Path) -> None:
    config = GPT2Config(vocab_size=211, n_embd=32, n_layer=2, n_head=2, n_positions=64, bos_token_id=1, eos_token_id=2)
    with pytest.raises(ModelLayoutError, match="gpt2") as refusal:
        make_trainer(tmp_path, GPT2LMHeadModel(config), internal_layer=1, internal_steps=1)
    assert "\n" not in str(refusal.value)


# ---- the seam to TRL


def test_the_seam_is_there() -> None:
    require_seam()
    parameters = signature(GRPOTrainer._get_per_token_logps_and_entropies).parameters
    assert set(FORWARD_EXTRAS) <= set(parameters)
    assert list(signature(GRPOTrainer._compute_loss).parameters) == ["self", "model", "inputs"]
    assert list(signature(GRPOTrainer._generate_and_score_completions).parameters) == ["self", "inputs"]


@pytest.mark.parametrize(
    ("version", "message"),
    [
        ("1.17.0", r"TRL 1\.16.*installed is 1\.17\.0: pip install 'trl>=1\.16,<1\.17'"),
        ("1.1.16", r"installed is 1\.1\.16"),
        (None, r"training needs TRL: pip install 'layerlens-policy\[train\]'"),
    ],
)
def test_another_trl_is_refused_when_the_trainer_is_asked_for(version: str | None, message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def installed(name: str) -> str:
        if version is None:
            raise PackageNotFoundError(name)
        return version

    monkeypatch.setattr("importlib.metadata.version", installed)
    for name in ("BuPOConfig", "BuPOTrainer"):
        with pytest.raises(TrainingError, match=message) as refusal:
            getattr(layerlens.train, name)
        assert "\n" not in str(refusal.value)


def test_a_trl_with_another_method_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(GRPOTrainer, "_compute_loss", lambda self, model, batch: None)
    with pytest.raises(TrainingError, match=r"GRPOTrainer\._compute_loss lacks inputs"):
        require_seam()


def test_a_trl_with_another_kernel_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr("trl.trainer.utils._ChunkedLogProbFunction")
    with pytest.raises(TrainingError, match="its log-probability kernel differs: pip install"):
        require_seam()
