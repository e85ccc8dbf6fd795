"""Options of TRL's GRPOConfig that an internal phase cannot honour, and values that TRL would trip over in the middle of a run.

What each other option does in an internal phase stands in docs/training.md.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from layerlens.errors import TrainingError

if TYPE_CHECKING:
    from layerlens.train.config import BuPOConfig

CHOICES = {
    "loss_type": ("grpo", "bnpo", "dr_grpo", "dapo", "luspo", "cispo", "sapo", "vespo"),
    "scale_rewards": ("group", "batch", "none", True, False),
    "importance_sampling_level": ("token", "sequence"),
    "multi_objective_aggregation": ("sum_then_normalize", "normalize_then_sum"),
    "vllm_importance_sampling_mode": ("token_truncate", "token_mask", "sequence_truncate", "sequence_mask"),
    "vllm_mode": ("colocate", "server"),
}
"""The values of options that TRL 1.16 takes as any text, and refuses when a batch is there."""
LEAST = {
    "per_device_train_batch_size": 1,
    "gradient_accumulation_steps": 1,
    "steps_per_generation": 1,
    "generation_batch_size": 1,
    "num_iterations": 1,
    "max_completion_length": 1,
    "learning_rate": 0,
    "weight_decay": 0,
    "max_grad_norm": 0,
}
"""The least value of options that TRL and transformers do not check, or check when the optimizer is made."""


def require_values(args: Any) -> None:
    """Raises TrainingError for a value that TRL would fail on, here or later. `args` has not been through TRL's own checks yet."""
    for name, choices in CHOICES.items():
        if getattr(args, name) not in choices:
            raise TrainingError(
                f"{name} is one of {', '.join(each for each in choices if isinstance(each, str))}, got {getattr(args, name)!r}"
            )
    for name, least in LEAST.items():
        value = getattr(args, name)
        if isinstance(value, int | float) and value < least:
            raise TrainingError(f"{name} must be at least {least}, got {value:g}")
    if isinstance(args.temperature, int | float) and args.temperature <= 0:
        raise TrainingError(f"temperature must be above 0, got {args.temperature:g}")
    if args.deepspeed and find_spec("deepspeed") is None:
        raise TrainingError(
            "deepspeed needs the library DeepSpeed, which is not installed: pip install deepspeed, or shard with FSDP2, as "
            "docs/guides/clusters.md shows"
        )


def compiles(args: BuPOConfig) -> bool:
    """Whether the model's forward pass is compiled: by torch_compile, or as accelerate's own configuration says."""
    return bool(args.torch_compile) or os.environ.get("ACCELERATE_DYNAMO_BACKEND", "no").lower() not in ("no", "")


def checkpoints_reentrantly(args: BuPOConfig) -> bool:
    """Whether activations are computed again by reentrant checkpointing.

    Recent versions of transformers call these options `activation_checkpointing…`, and give both names one value.
    """
    return bool(args.gradient_checkpointing and (args.gradient_checkpointing_kwargs or {}).get("use_reentrant"))


def refusals(args: BuPOConfig) -> Iterator[str]:
    """Yields why an internal phase cannot be trained under these settings, one message after the other."""
    if args.use_liger_kernel:
        yield "Liger replaces the modules that an internal policy needs: set use_liger_kernel=False, or internal_rollouts=0"
    if compiles(args):
        yield "torch_compile fixes one forward pass, and an internal phase runs another: set torch_compile=False, or internal_rollouts=0"
    if args.beta > 0 and args.internal_norm == "none":
        yield (
            "beta > 0 needs internal_norm='final': without a norm the KL estimate of an internal policy, exp(d) - d - 1 of "
            "log-probabilities that are d apart, grows beyond all bounds: set internal_norm='final', or beta=0"
        )
    if args.ddp_find_unused_parameters is False:
        yield "blocks above the layer take no part in an internal phase: leave ddp_find_unused_parameters unset, or set it to True"
    if args.world_size > 1 and checkpoints_reentrantly(args):
        yield "reentrant checkpointing fails where weights take no part, as in an internal phase: set use_reentrant to False"
    if args.ddp_static_graph:
        yield "the graph of an internal phase is not that of GRPO: set ddp_static_graph=False, or internal_rollouts=0"
    if args.deepspeed_plugin and getattr(args.deepspeed_plugin, "zero_stage", None) == 3:
        yield "internal phases were never run with DeepSpeed's ZeRO-3: shard with FSDP2 (configs/accelerate/fsdp2-8gpu.yaml)"
    if args.deepspeed_plugin and args.weight_decay > 0 and not args.decay_above:
        yield "DeepSpeed steps every weight, so blocks above the layer would decay: set weight_decay=0, or decay_above=True"
