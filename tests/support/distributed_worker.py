"""What one of several processes does: the command line, or one optimizer step on a fixed batch, which leaves the weights in a file.

With plain gradient descent at rate 1 the change of a weight is its gradient and, if it has one, its decay: equal weights after
the step mean equal gradients.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import torch
from accelerate.state import AcceleratorState, PartialState
from accelerate.utils import DistributedType
from torch.distributed.tensor import DTensor
from trl import GRPOTrainer

from layerlens.cli import main
from tests.support.tiny_models import tiny_model
from tests.support.training import fixed_batch, make_trainer


def scored(self: GRPOTrainer, inputs: Any) -> dict[str, torch.Tensor]:
    """This process's share of a fixed batch, instead of sampling."""
    batch, rank, world = fixed_batch(), self.accelerator.process_index, self.accelerator.num_processes
    share = slice(rank * 4 // world, (rank + 1) * 4 // world)
    return {name: values[share] if values.ndim else values for name, values in batch.items()}


def shard_on_cpu() -> None:
    """Makes accelerate do on several CPUs what it does on several GPUs: it shards on accelerators alone."""
    initialise = AcceleratorState.__init__

    def with_shards(self: AcceleratorState, *args: Any, fsdp_plugin: Any = None, **kwargs: Any) -> None:
        initialise(self, *args, fsdp_plugin=fsdp_plugin, **kwargs)
        if fsdp_plugin is not None and self.distributed_type == DistributedType.MULTI_CPU:
            self.distributed_type, self.fsdp_plugin = DistributedType.FSDP, fsdp_plugin
            PartialState._shared_state["distributed_type"] = DistributedType.FSDP

    AcceleratorState.__init__ = with_shards


def command(*words: str) -> None:
    """`layerlens` with the words of the command line, sharded with FSDP2 on the CPU."""
    shard_on_cpu()
    sys.argv = ["layerlens", *words]
    main()


def take_step(out: Path, tied: str, settings: dict[str, Any]) -> None:
    GRPOTrainer._generate_and_score_completions = scored
    shard_on_cpu()
    world = int(os.environ.get("WORLD_SIZE", 1))
    trainer = make_trainer(
        out.with_suffix(""), tiny_model("qwen3", tied=tied == "tied"), max_steps=1, optim="sgd",
        learning_rate=1.0, weight_decay=0.1, max_grad_norm=0.0, num_generations=2, per_device_train_batch_size=4 // world,
        **{"internal_rollouts": -1} | settings,
    )  # fmt: skip
    trainer.train()
    sharded = any(isinstance(weight, DTensor) for weight in trainer.model.parameters())
    assert sharded == ("fsdp" in settings or "ACCELERATE_USE_FSDP" in os.environ)
    if "ddp_bucket_cap_mb" in settings:
        made = trainer.model_wrapped
        assert (made.bucket_bytes_cap >> 20, made.broadcast_buffers) == (settings["ddp_bucket_cap_mb"], settings["ddp_broadcast_buffers"])
    weights = trainer.accelerator.get_state_dict(trainer.model_wrapped)
    if trainer.accelerator.is_main_process:
        torch.save({name.removeprefix("module."): weight.clone() for name, weight in weights.items()}, out)
