"""A run over two internal rollouts and one of GRPO, alone or as one of several processes, and runs resumed from its checkpoints.

Leaves a line of JSON in `out`: for each kind of checkpoint, by the optimizer steps before it, the weights in which a resumed run differs;
and how many rollouts each process samples in a run resumed inside a rollout, of which the last process has lost its batches.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import torch
from accelerate.state import AcceleratorState
from accelerate.utils import gather_object

from layerlens.train.resume import position_file
from tests.support.distributed_worker import shard_on_cpu
from tests.support.tiny_models import tiny_model
from tests.support.training import make_trainer

SETTINGS = {"internal_layer": 2, "internal_rollouts": 2, "num_iterations": 2, "num_generations": 4, "per_device_train_batch_size": 2}


def train(folder: Path, checkpoint: Path | None = None, **settings: Any) -> tuple[Any, dict[str, torch.Tensor]]:
    trainer = make_trainer(folder, tiny_model("qwen3"), **SETTINGS, **settings)
    trainer._generate = Mock(wraps=trainer._generate)
    trainer.train(resume_from_checkpoint=None if checkpoint is None else str(checkpoint))
    weights = trainer.accelerator.get_state_dict(trainer.model_wrapped)
    return trainer, {name: weight.clone() for name, weight in weights.items()}


def resume(out: Path) -> None:
    shard_on_cpu()
    folder = out.with_suffix("")
    found: dict[str, Any] = {}
    for kind in ("FULL_STATE_DICT", "SHARDED_STATE_DICT"):
        os.environ["FSDP_STATE_DICT_TYPE"] = kind
        AcceleratorState._reset_state(reset_partial_state=False)
        trainer, whole = train(folder / kind, max_steps=6, save_strategy="steps", save_steps=1)
        assert trainer.accelerator.state.fsdp_plugin.state_dict_type.name == kind
        for step in (3, 4, 5):  # inside the internal phase and inside a rollout, at the phase's end, after it
            _, resumed = train(folder / f"{kind}-{step}", folder / kind / f"checkpoint-{step}", max_steps=6)
            found[f"{kind} {step}"] = [name for name, weight in whole.items() if not torch.equal(weight, resumed[name])]
    checkpoint = folder / kind / "checkpoint-3"
    if trainer.accelerator.is_main_process:
        position_file(str(checkpoint), trainer.accelerator.num_processes - 1).unlink()
    trainer.accelerator.wait_for_everyone()
    trainer, _ = train(folder / "lost", checkpoint, max_steps=6)
    rollouts = gather_object([trainer._generate.call_count])
    if trainer.accelerator.is_main_process:
        start = tiny_model("qwen3").state_dict()
        moved = sum(not torch.equal(weight.cpu(), start[name]) for name, weight in whole.items())
        out.write_text(json.dumps({"differing": found, "weights": len(whole), "moved": moved, "rollouts": rollouts}))
