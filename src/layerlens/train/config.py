"""BuPO's settings on top of TRL's GRPOConfig; contradictions are refused when it is built."""

from __future__ import annotations

import importlib.metadata
import inspect
from dataclasses import dataclass, field
from typing import Any

from trl import GRPOConfig, GRPOTrainer

from layerlens.errors import TrainingError
from layerlens.train.schedule import WHOLE_RUN, Schedule
from layerlens.types import NORMS

SEAM = {
    "_generate_and_score_completions": {"inputs"},
    "_get_per_token_logps_and_entropies": {"model", "input_ids", "attention_mask", "logits_to_keep", "batch_size", "compute_entropy"},
    "_compute_loss": {"model", "inputs"},
}
"""Methods of GRPOTrainer that BuPO stands on, and the parameters they must have."""

TRL_VERSIONS = "1.16"


@dataclass
class BuPOConfig(GRPOConfig):  # type: ignore[misc]
    """Bottom-up Policy Optimization (arXiv 2512.19673): internal phases, then GRPO. Everything else is GRPOConfig's.

    Steps of the internal phase are rollout steps, the paper's s_inter: one is one generation batch, however many optimizer
    steps and iterations it is trained on.
    """

    internal_layer: int | str | None = field(
        default=None,
        metadata={
            "help": "Layer (from 1) whose policy the internal phase trains; 'auto' analyses the model first and chooses; "
            "'none' leaves the internal phase out: plain GRPO, to compare with."
        },
    )
    internal_steps: int = field(
        default=0, metadata={"help": "Rollout steps of the internal phase (s_inter); -1 for the whole run (internal alignment alone)."}
    )
    internal_schedule: Any = field(
        default=None, metadata={"help": "Several layers bottom-up instead of one, as '4:10,8:20' (layer:rollout steps)."}
    )
    internal_norm: str = field(default="none", metadata={"help": "'none' (the paper) or 'final': N(h) in front of the unembedding."})
    internal_rule: str = field(default="boundary", metadata={"help": "Rule of 'auto': boundary, entropy_drop or agreement."})
    internal_samples: int = field(default=32, metadata={"help": "Training prompts that 'auto' analyses."})
    decay_above: bool = field(
        default=False,
        metadata={"help": "Let weight decay act on blocks above the layer in the internal phase. Off: they do not move at all."},
    )
    layer_lr_factors: str | None = field(
        default=None, metadata={"help": "Learning-rate factors by layer, as '1-6:1.0,7-36:0.1'; layers not named keep 1."}
    )
    layer_lr_decay: float | None = field(
        default=None, metadata={"help": "Learning-rate factor of all blocks above `layer_lr_above` (the paper's control: 0.1)."}
    )
    layer_lr_above: int | None = field(default=None, metadata={"help": "Layer above which `layer_lr_decay` acts; default: internal_layer."})
    freeze_layers: int = field(default=0, metadata={"help": "Freeze the embedding (unless tied) and blocks 1...n for the whole run."})

    monitor_steps: int = field(
        default=0,
        metadata={"help": "Look into the model every so many optimizer steps (and before the first and after the last); 0: never."},
    )
    monitor_problems: int = field(default=16, metadata={"help": "Problems of the fixed probe set that the monitor looks at."})
    monitor_repeats: int = field(default=4, metadata={"help": "Fresh answers per probe problem, for length and stability."})

    def __post_init__(self) -> None:
        super().__post_init__()
        require_seam()
        if self.internal_layer == "none":
            self.internal_layer, self.internal_steps = None, 0
        if isinstance(self.internal_layer, str) and self.internal_layer != "auto":
            if not self.internal_layer.isdigit():
                raise TrainingError(f"internal_layer is a layer from 1, 'auto' or 'none', got {self.internal_layer!r}")
            self.internal_layer = int(self.internal_layer)
        if self.internal_norm not in NORMS:
            raise TrainingError(f"internal_norm is one of {', '.join(NORMS)}, got {self.internal_norm!r}")
        if self.internal_schedule is not None and (self.internal_layer is not None or self.internal_steps):
            raise TrainingError("give either internal_schedule, or internal_layer with internal_steps")
        if self.internal_layer is not None and self.internal_steps == 0:
            raise TrainingError("internal_layer needs internal_steps: how many rollout steps, or -1 for the whole run")
        if self.internal_layer is None and self.internal_steps:
            raise TrainingError("internal_steps needs internal_layer: a layer from 1, or 'auto'")
        if self.internal_schedule is not None:
            self.internal_schedule = [list(phase) for phase in Schedule.parse(self.internal_schedule).phases]
        if self.internal_layer not in (None, "auto"):
            Schedule(((self.internal_layer, self.internal_steps),))  # type: ignore[arg-type]
        if self.layer_lr_factors and self.layer_lr_decay is not None:
            raise TrainingError("give either layer_lr_factors or layer_lr_decay")
        if self.layer_lr_above is not None and self.layer_lr_decay is None:
            raise TrainingError("layer_lr_above needs layer_lr_decay: the factor of the blocks above it")
        if self.layer_lr_decay is not None and self.layer_lr_above is None and not isinstance(self.internal_layer, int):
            raise TrainingError("layer_lr_decay needs layer_lr_above: the layer above which it acts")
        if self.monitor_steps and (self.fsdp or self.deepspeed):
            raise TrainingError(
                "the monitor reads whole weights, which FSDP and DeepSpeed shard: set monitor_steps=0 and analyse checkpoints instead"
            )
        if self.monitor_steps < 0 or self.monitor_problems < 1 or self.monitor_repeats < 1:
            raise TrainingError("monitor_steps must be 0 or more, monitor_problems and monitor_repeats at least 1")
        if self.trains_internally and self.deepspeed and self.weight_decay > 0 and not self.decay_above:
            raise TrainingError(
                "DeepSpeed steps every weight, so blocks above the layer would decay: set weight_decay=0, or decay_above=True"
            )

    @property
    def trains_internally(self) -> bool:
        """Whether there is an internal phase."""
        return self.internal_layer is not None or self.internal_schedule is not None

    def schedule(self, auto_layer: int | None = None) -> Schedule:
        """The internal phases, with what 'auto' has chosen."""
        if self.internal_schedule is not None:
            return Schedule.parse(self.internal_schedule)
        layer = auto_layer if self.internal_layer == "auto" else self.internal_layer
        return Schedule() if layer is None else Schedule(((int(layer), self.internal_steps),))

    def optimizer_steps(self, rollouts: int) -> float:
        """How many optimizer steps so many rollout steps are; infinite for -1."""
        if rollouts == WHOLE_RUN:
            return float("inf")
        return float(rollouts * self.steps_per_generation * self.num_iterations / self.gradient_accumulation_steps)


def require_seam() -> None:
    """Raises TrainingError where the installed TRL is not the one whose inner methods BuPO was written against."""
    version = importlib.metadata.version("trl")
    differing = [
        name
        for name, parameters in SEAM.items()
        if not hasattr(GRPOTrainer, name) or not parameters <= inspect.signature(getattr(GRPOTrainer, name)).parameters.keys()
    ]
    if not version.startswith(f"{TRL_VERSIONS}.") or differing:
        what = f", and its {differing[0]} differs" if differing else ""
        raise TrainingError(f"BuPO stands on TRL {TRL_VERSIONS}; installed is {version}{what}: pip install 'trl>=1.16,<1.17'")
