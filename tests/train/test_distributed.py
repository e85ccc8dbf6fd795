"""Two processes, data parallel or sharded, take the optimizer step that one process takes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from layerlens.results.training_log import open_training
from layerlens.storage.bundled import bundled_model
from tests.support.distributed_worker import command, take_step
from tests.support.processes import FSDP2, launch
from tests.support.tiny_models import tiny_model


def step(out: Path, tied: str, processes: int, env: dict[str, str] | None = None, **settings: Any) -> dict[str, torch.Tensor]:
    """The weights after one optimizer step on layer 2's policy. The trainer's folder lies beside `out`, under its name without suffix."""
    launch(take_step, [out, tied, {"internal_layer": 2, **settings}], processes, out.with_suffix(".log"), env)
    return torch.load(out, weights_only=True)


OPTIONS: dict[str, dict[str, Any]] = {
    "ddp": {
        "ddp_backend": "gloo", "ddp_bucket_cap_mb": 1, "ddp_broadcast_buffers": False,
        "log_level_replica": "error", "log_on_each_node": False,
    },
    "fsdp2": {"fsdp": True, "fsdp_config": {"version": 2, "transformer_layer_cls_to_wrap": "Qwen3DecoderLayer"}},
}  # fmt: skip


@pytest.mark.parametrize(("tied", "loss_type"), [("tied", "grpo"), ("untied", "dapo")])
@pytest.mark.parametrize("how", OPTIONS)
def test_two_processes_take_the_optimizer_step_of_one(how: str, tied: str, loss_type: str, tmp_path: Path) -> None:
    alone = step(tmp_path / "one.pt", tied, 1, loss_type=loss_type)
    together = step(tmp_path / "two.pt", tied, 2, loss_type=loss_type, **OPTIONS[how])
    start = tiny_model("qwen3", tied=tied == "tied").state_dict()
    for name, weight in alone.items():
        torch.testing.assert_close(together[name], weight, atol=1e-6, rtol=1e-5, msg=name)
    for weights in (alone, together):
        unmoved = {name for name, weight in weights.items() if torch.equal(weight, start[name])}
        assert unmoved == {name for name in start if name.startswith(("model.layers.2.", "model.layers.3.", "model.norm"))}


DISTILL = {"internal_loss": "distill", "distill_layers": "1,3", "distill_lambda": 0.5, "distill_weights": "absolute"}
MASKS = {"token_signal": "kl_to_final", "token_layer": 2, "token_quantile": 0.4}


@pytest.mark.parametrize("signal", [DISTILL, MASKS], ids=["distillation", "token masks"])
def test_two_processes_take_the_step_of_one_with_what_the_layers_say(signal: dict[str, Any], tmp_path: Path) -> None:
    grpo = {"internal_layer": None, "internal_rollouts": 0}
    alone = step(tmp_path / "one.pt", "untied", 1, **grpo, **signal)
    together = step(tmp_path / "two.pt", "untied", 2, **grpo, **signal)
    start = tiny_model("qwen3").state_dict()
    for name, weight in alone.items():
        torch.testing.assert_close(together[name], weight, atol=1e-6, rtol=1e-5, msg=name)
        assert not torch.equal(weight, start[name]), name


@pytest.mark.parametrize("how", ["ddp", "fsdp2"])
def test_all_processes_train_the_layer_that_one_chooses(how: str, tmp_path: Path) -> None:
    auto = {"internal_layer": "auto", "internal_rule": "entropy_drop", "internal_samples": 4}
    together = step(tmp_path / "two.pt", "untied", 2, FSDP2 if how == "fsdp2" else None, **auto)
    schedule = json.loads((tmp_path / "two" / "schedule.json").read_text())
    [phase] = schedule["phases"]
    assert schedule["choice"]["layer"] == phase["layer"]
    alone = step(tmp_path / "one.pt", "untied", 1, internal_layer=phase["layer"])
    for name, weight in alone.items():
        torch.testing.assert_close(together[name], weight, atol=1e-6, rtol=1e-5, msg=name)


@pytest.mark.parametrize("tied", ["tied", "untied"])
def test_the_monitor_of_sharded_weights_measures_what_one_process_measures(tied: str, tmp_path: Path) -> None:
    monitored = {"monitor_every": 1, "monitor_problems": 3, "monitor_repeats": 2}
    step(tmp_path / "one.pt", tied, 1, **monitored)
    step(tmp_path / "two.pt", tied, 2, FSDP2, **monitored)
    alone, sharded = (open_training(tmp_path / name).monitor for name in ("one", "two"))
    assert alone["step"].tolist() == sharded["step"].tolist() == [0, 1]
    assert list(alone.columns) == list(sharded.columns)
    moved = alone[["drift/layer_1", "drift/layer_2"]].iloc[1]
    assert (moved > 1e-4).all()
    assert (sharded[["drift/layer_3", "drift/layer_4"]] == 0).all(axis=None)
    # the probe answers are those sampled at the start; fresh answers of two models may part after a near-tie
    same = [name for name in alone.columns if not name.startswith(("stability", "response_length"))]
    np.testing.assert_allclose(sharded[same], alone[same], atol=2e-4, rtol=2e-4)


def test_the_command_writes_the_whole_model_after_checkpoints_in_shards(tmp_path: Path) -> None:
    train = [
        "train", "--config", "tiny-qwen3-cpu", "--output_dir", str(tmp_path), "--max_steps", "1", "--monitor_every", "0",
        "--max_completion_length", "8", "--per_device_train_batch_size", "8", "--gradient_accumulation_steps", "1",
        "--problems_limit", "16", "--save_strategy", "steps", "--save_steps", "1", "--threads", "1",
    ]  # fmt: skip
    launch(command, train, 2, tmp_path / "log", FSDP2 | {"FSDP_STATE_DICT_TYPE": "SHARDED_STATE_DICT"})
    start = load_file(bundled_model("tiny-qwen3") / "model.safetensors")
    trained = load_file(tmp_path / "model.safetensors")
    assert {name: weight.shape for name, weight in trained.items()} == {name: weight.shape for name, weight in start.items()}
    assert not list((tmp_path / "checkpoint-1").glob("*.safetensors"))
