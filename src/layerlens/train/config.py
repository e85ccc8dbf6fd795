"""BuPO's settings on top of TRL's GRPOConfig; contradictions are refused when it is built."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from trl import GRPOConfig

from layerlens.errors import TrainingError
from layerlens.train.rates import parse_factors
from layerlens.train.schedule import WHOLE_RUN, Schedule
from layerlens.types import NORMS, RULES


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
    internal_schedule: list[Any] | str | None = field(
        default=None,
        metadata={"help": "Several layers bottom-up instead of one, as '4:10,8:20' or [[4, 10], [8, 20]] (layer, rollout steps)."},
    )
    internal_norm: str = field(default="none", metadata={"help": "'none' (the paper) or 'final': N(h) in front of the unembedding."})
    internal_rule: str = field(default="boundary", metadata={"help": f"Rule of 'auto': {', '.join(RULES)}."})
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
        metadata={
            "help": "Look into the model every so many optimizer steps, and at the start, the end, and the end of a phase; 0: never."
        },
    )
    monitor_layer: int | None = field(
        default=None,
        metadata={"help": "Layer whose similarity and KL to those above are watched; default: the first internal one, or the last."},
    )
    monitor_problems: int = field(default=16, metadata={"help": "Problems of the fixed probe set that the monitor looks at."})
    monitor_repeats: int = field(default=4, metadata={"help": "Fresh answers per probe problem, for length and stability."})

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.internal_layer == "none":
            self.internal_layer, self.internal_steps = None, 0
        if isinstance(self.internal_layer, str) and self.internal_layer.isdigit():
            self.internal_layer = int(self.internal_layer)
        for message in self._contradictions():
            raise TrainingError(message)
        if self.internal_schedule is not None:
            self.internal_schedule = [list(phase) for phase in Schedule.parse(self.internal_schedule).phases]

    def _contradictions(self) -> Iterator[str]:
        """What is wrong with these settings, the first first."""
        if isinstance(self.internal_layer, str) and self.internal_layer != "auto":
            yield f"internal_layer is a layer from 1, 'auto' or 'none', got {self.internal_layer!r}"
        if self.internal_norm not in NORMS:
            yield f"internal_norm is one of {', '.join(NORMS)}, got {self.internal_norm!r}"
        if self.internal_rule not in RULES:
            yield f"internal_rule is one of {', '.join(RULES)}, got {self.internal_rule!r}"
        if self.internal_samples < 1:
            yield f"internal_samples must be at least 1, got {self.internal_samples}"
        if self.internal_schedule is not None and (self.internal_layer is not None or self.internal_steps):
            yield "give either internal_schedule, or internal_layer with internal_steps"
        if self.internal_layer is not None and self.internal_steps == 0:
            yield "internal_layer needs internal_steps: how many rollout steps, or -1 for the whole run"
        if self.internal_layer is None and self.internal_steps:
            yield "internal_steps needs internal_layer: a layer from 1, or 'auto'"
        self.require_unfrozen(self.schedule(auto_layer=None))  # which refuses what is no schedule
        if self.trains_internally and self.use_liger_kernel:
            yield "Liger replaces the modules that an internal policy is cut out of: leave use_liger_kernel off, or train without one"
        if self.layer_lr_factors and self.layer_lr_decay is not None:
            yield "give either layer_lr_factors or layer_lr_decay"
        if self.layer_lr_factors:
            parse_factors(self.layer_lr_factors)  # which refuses what are no factors
        if self.layer_lr_decay is not None and self.layer_lr_decay < 0:
            yield f"layer_lr_decay must be 0 or more, got {self.layer_lr_decay:g}"
        if self.layer_lr_above is not None and self.layer_lr_decay is None:
            yield "layer_lr_above needs layer_lr_decay: the factor of the blocks above it"
        if self.layer_lr_decay is not None and self.layer_lr_above is None and self.internal_layer is None:
            yield "layer_lr_decay needs layer_lr_above: the layer above which it acts"
        if self.monitor_steps < 0 or self.monitor_problems < 1 or self.monitor_repeats < 1:
            yield "monitor_steps must be 0 or more, monitor_problems and monitor_repeats at least 1"
        if self.monitor_layer is not None and (self.monitor_layer < 1 or not self.monitor_steps):
            yield f"monitor_layer={self.monitor_layer} must be a layer from 1, and needs monitor_steps above 0"
        if self.deepspeed_plugin and self.internal_layer == "auto":
            yield "internal_layer='auto' can not look into DeepSpeed's model: take the layer that `layerlens analyze` and `select` give"
        if self.deepspeed_plugin and self.monitor_steps:
            yield "the monitor works with DDP and FSDP2, not with DeepSpeed: set monitor_steps=0 and analyse checkpoints instead"
        if self.deepspeed_plugin and self.trains_internally and self.weight_decay > 0 and not self.decay_above:
            yield "DeepSpeed steps every weight, so blocks above the layer would decay: set weight_decay=0, or decay_above=True"

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

    def require_unfrozen(self, schedule: Schedule) -> None:
        """Raises TrainingError where a phase would train a layer's policy with all of its blocks frozen."""
        for layer, _ in schedule.phases:
            if layer <= self.freeze_layers:
                raise TrainingError(
                    f"freeze_layers={self.freeze_layers} leaves nothing but the unembedding to train in layer {layer}'s policy"
                )

    @property
    def updates(self) -> float:
        """Optimizer steps to a rollout step."""
        return float(self.steps_per_generation * self.num_iterations / self.gradient_accumulation_steps)

    def optimizer_steps(self, rollouts: int) -> float:
        """How many optimizer steps so many rollout steps are; infinite for -1."""
        return float("inf") if rollouts == WHOLE_RUN else rollouts * self.updates
