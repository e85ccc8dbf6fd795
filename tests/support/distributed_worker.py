"""One optimizer step on a fixed batch, alone or as one of several processes; leaves the weights after it in a file.

With plain gradient descent at rate 1 the change of a weight is its gradient and, if it has one, its decay: equal weights after
the step mean equal gradients.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import torch
from accelerate.state import AcceleratorState, PartialState
from accelerate.utils import DistributedType
from torch.distributed.tensor import DTensor
from trl import GRPOTrainer

sys.path.insert(0, str(Path(__file__).parents[2]))

from tests.support.tiny_models import tiny_model
from tests.support.training import fixed_batch, make_trainer

torch.set_num_threads(1)


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


def main(out: str, tied: str, settings: str) -> None:
    GRPOTrainer._generate_and_score_completions = scored
    shard_on_cpu()
    world = int(os.environ.get("WORLD_SIZE", 1))
    trainer = make_trainer(
        Path(out).with_suffix(""), tiny_model("qwen3", tied=tied == "tied"), max_steps=1, optim="sgd",
        learning_rate=1.0, weight_decay=0.1, max_grad_norm=0.0, num_generations=2, per_device_train_batch_size=4 // world,
        **{"internal_rollouts": -1} | json.loads(settings),
    )  # fmt: skip
    trainer.train()
    sharded = any(isinstance(weight, DTensor) for weight in trainer.model.parameters())
    assert sharded == ("ACCELERATE_USE_FSDP" in os.environ)
    weights = trainer.accelerator.get_state_dict(trainer.model_wrapped)
    if trainer.accelerator.is_main_process:
        torch.save({name.removeprefix("module."): weight.clone() for name, weight in weights.items()}, out)


if __name__ == "__main__":
    main(*sys.argv[1:])
    sys.stderr.flush()
    os._exit(0)  # a thread of gloo may still hold a tensor, which aborts an interpreter that closes (pytorch#190489)
