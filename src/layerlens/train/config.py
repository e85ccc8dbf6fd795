"""BuPO's settings on top of TRL's GRPOConfig; contradictions are refused when a configuration is built."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from math import ceil
from typing import Any

from trl import GRPOConfig
from trl.trainer.utils import get_config_model_id

from layerlens.errors import TrainingError
from layerlens.selection import LayerChoice
from layerlens.train.choice_file import read_choice
from layerlens.train.fields import DEFAULTS, BuPOFields
from layerlens.train.grpo_options import checkpoints_reentrantly, refusals, require_values
from layerlens.train.layer_rates import parse_factors
from layerlens.train.old_names import takes_old_names
from layerlens.train.schedule import WHOLE_RUN, Schedule
from layerlens.train.signal_options import OF_DISTILLATION, OF_TOKEN_MASK, asked_layers, signal_contradictions
from layerlens.train.trained_weights import ALL, layers_text, parse_layers
from layerlens.types import FORWARD_NORMS, RULES


@takes_old_names
@dataclass
class BuPOConfig(BuPOFields, GRPOConfig):  # type: ignore[misc]
    """Settings of Bottom-up Policy Optimization (arXiv 2512.19673): TRL's GRPOConfig with the fields of `BuPOFields`.

    Attributes:
        layer_choice: the choice that was read, if `internal_layer` named a file; `internal_layer` is then its layer.

    Raises TrainingError for settings that contradict each other, and for a file that holds no layer to train.
    """

    layer_choice: LayerChoice | None = field(default=None, init=False)

    @classmethod
    def of(cls, args: GRPOConfig | None, model: Any) -> BuPOConfig:
        """What BuPOTrainer was given as `args`, as a BuPOConfig: a GRPOConfig is plain GRPO, and so is None, with TRL's output_dir."""
        if isinstance(args, cls):
            return args
        if args is None:
            name = model if isinstance(model, str) else get_config_model_id(model.config)
            return cls(f"{name.split('/')[-1]}-GRPO")
        if not isinstance(args, GRPOConfig):
            raise TrainingError(f"BuPOTrainer needs a BuPOConfig or TRL's GRPOConfig as args, got {type(args).__name__}")
        adopted = cls.__new__(cls)  # not built again: a configuration that is built twice refuses what it has derived itself
        adopted.__dict__ |= DEFAULTS | {"layer_choice": None} | vars(args)
        return adopted

    def __post_init__(self) -> None:
        require_values(self)
        super().__post_init__()
        if self.internal_schedule in ("none", "", []):
            self.internal_schedule = None
        if self.internal_layer == "none":
            self.internal_layer, self.internal_rollouts, self.internal_schedule = None, 0, None
        if isinstance(self.internal_layer, str) and self.internal_layer.isdigit():
            self.internal_layer = int(self.internal_layer)
        if isinstance(self.internal_layer, str) and self.internal_layer != "auto":
            self.layer_choice = read_choice(self.internal_layer)
            self.internal_layer = self.layer_choice.layer
        self._take_away_signals()
        layers = self.trained_layers
        self.train_layers = ALL if layers is None else layers_text(layers)
        for message in self._contradictions():
            raise TrainingError(message)
        if self.internal_schedule is not None:
            self.internal_schedule = [list(phase) for phase in Schedule.parse(self.internal_schedule).phases]

    def _take_away_signals(self) -> None:
        """What `none` for distillation or token masks means: that nothing of a file's is left."""
        for switch, settings in (("internal_loss", OF_DISTILLATION), ("token_signal", OF_TOKEN_MASK)):
            if getattr(self, switch) == "none":
                for name in (switch, *settings):
                    setattr(self, name, DEFAULTS[name])

    def _contradictions(self) -> Iterator[str]:
        """Yields what is wrong with these settings, one message after the other."""
        if isinstance(self.internal_layer, int) and self.internal_layer < 1:
            yield f"internal layers count from 1, got {self.internal_layer}"
        if (self.internal_rollouts or 0) < WHOLE_RUN:
            yield f"an internal phase lasts at least one rollout (0: no such phase; -1: the whole run), got {self.internal_rollouts}"
        if self.internal_norm not in FORWARD_NORMS:
            yield f"internal_norm is one of {', '.join(FORWARD_NORMS)}, got {self.internal_norm!r}"
        if self.internal_lens != "logit" and self.internal_norm != "final":
            yield f"internal_lens={self.internal_lens} goes with internal_norm=final, got {self.internal_norm!r}"
        if self.internal_lens != "logit" and self.chooses_layer:
            yield "internal_layer='auto' reads with the logit lens: choose on a run with this lens, and name the file of the choice"
        if self.internal_rule is not None and self.internal_rule not in RULES:
            yield f"internal_rule is one of {', '.join(RULES)}, got {self.internal_rule!r}"
        if self.internal_samples < 1:
            yield f"internal_samples must be at least 1, got {self.internal_samples}"
        if self.internal_schedule is not None and (self.internal_layer is not None or self.internal_rollouts):
            yield "give either internal_schedule, or internal_layer with internal_rollouts; internal_schedule none takes a schedule away"
        if self.internal_layer is not None and self.internal_rollouts is None:
            yield "internal_layer needs internal_rollouts: a number, -1 for the whole run, or 0 for plain GRPO"
        if self.internal_layer is None and self.internal_rollouts:
            yield "internal_rollouts needs internal_layer: a layer from 1, a file of `layerlens select --json`, or auto"
        self.require_unfrozen(self.schedule())  # which also refuses what is no schedule
        if self.trains_internally:
            yield from refusals(self)
        if self.trained_layers and self.freeze_layers:
            yield "give either train_layers or freeze_layers"
        if checkpoints_reentrantly(self) and (self.trained_layers or self.freeze_layers):
            yield "reentrant checkpointing gives no gradient behind frozen weights: set use_reentrant to False"
        yield from signal_contradictions(self)
        if self.layer_lr_factors and self.layer_lr_decay is not None:
            yield "give either layer_lr_factors or layer_lr_decay"
        named = parse_factors(self.layer_lr_factors) if self.layer_lr_factors else []  # which refuses what are no factors
        trained = self.trained_layers or ()
        for first, last, _ in named if trained else ():
            if frozen := next((layer for layer in range(first, last + 1) if layer not in trained), None):
                yield f"layer_lr_factors names layer {frozen}, which train_layers={self.train_layers} freezes: name trained layers alone"
        if trained and self.layer_lr_decay is not None:
            yield "layer_lr_decay is a factor of layers that train_layers may freeze: give layer_lr_factors of the trained ones"
        if self.layer_lr_decay is not None and self.layer_lr_decay < 0:
            yield f"layer_lr_decay must be 0 or more, got {self.layer_lr_decay:g}"
        if self.layer_lr_above is not None and self.layer_lr_decay is None:
            yield "layer_lr_above needs layer_lr_decay: the factor of the blocks above it"
        if self.layer_lr_decay is not None and self.layer_lr_above is None and not (self.chooses_layer or self.named_layer):
            yield "layer_lr_decay needs layer_lr_above: the layer above which it acts"
        rates = self.layer_lr_factors or self.layer_lr_decay is not None
        if rates and self.deepspeed_plugin and "optimizer" in self.deepspeed_plugin.hf_ds_config.config:
            yield (
                "DeepSpeed makes the optimizer that its configuration names, with one learning rate for all layers: take `optimizer` out "
                "of DeepSpeed's file, or leave layer_lr_factors and layer_lr_decay unset"
            )
        if self.monitor_every < 0 or self.monitor_problems < 1 or self.monitor_repeats < 1:
            yield "monitor_every must be 0 or more, monitor_problems and monitor_repeats at least 1"
        if self.monitor_layer is not None and self.monitor_layer < 1:
            yield f"monitor_layer must be a layer from 1, got {self.monitor_layer}"
        if self.monitor_layer is not None and not self.monitor_every:
            yield "monitor_layer needs monitor_every: the optimizer steps between two snapshots"
        if self.max_completion_length is None and (self.chooses_layer or self.monitor_every):
            yield "internal_layer='auto' and the monitor sample answers of a length that must be known: set max_completion_length"
        if self.deepspeed_plugin and self.chooses_layer:
            yield "internal_layer='auto' cannot read DeepSpeed's model: give the layer that `layerlens analyze` and `select` find"
        if self.deepspeed_plugin and self.monitor_every:
            yield "the monitor works with DDP and FSDP2, not with DeepSpeed: set monitor_every=0 and analyse checkpoints instead"

    @property
    def trains_internally(self) -> bool:
        """Whether there is an internal phase."""
        return self.internal_rollouts != 0 and (self.internal_layer is not None or self.internal_schedule is not None)

    @property
    def reads_layers(self) -> bool:
        """Whether anything in these settings needs to know the model's layers; without, every model that GRPOTrainer trains will do."""
        named = (self.internal_layer, self.internal_schedule, self.layer_lr_factors, self.layer_lr_decay)
        return any(value is not None for value in named) or bool(
            self.freeze_layers or self.monitor_every or self.trained_layers or self.distilled_layers or self.token_signal
        )

    @property
    def chooses_layer(self) -> bool:
        """Whether the model is analysed first, to choose the layer of the internal phase."""
        return self.internal_layer == "auto" and self.trains_internally

    @property
    def named_layer(self) -> int | None:
        """The layer that `internal_layer` names by number or by file, whether or not there is an internal phase."""
        return None if self.internal_layer in (None, "auto") else int(self.internal_layer)

    def schedule(self, auto_layer: int | None = None) -> Schedule:
        """The internal phases. With "auto" there is none until `auto_layer` says which layer was chosen."""
        if not self.trains_internally:
            return Schedule()
        if self.internal_schedule is not None:
            return Schedule.parse(self.internal_schedule)
        layer = auto_layer if self.chooses_layer else self.named_layer
        return Schedule() if layer is None else Schedule(((layer, self.internal_rollouts),))  # type: ignore[arg-type]

    @property
    def distilled_layers(self) -> tuple[int, ...]:
        """The layers whose policies learn from the final policy; none if nothing is distilled, or with weight 0."""
        if self.internal_loss != "distill" or self.distill_lambda == 0:
            return ()
        return asked_layers(self)

    @property
    def trained_layers(self) -> tuple[int, ...] | None:
        """The blocks that alone learn; None if every weight does."""
        return None if self.train_layers is None else parse_layers(self.train_layers)

    def frozen_layers(self, n_layers: int) -> set[int]:
        """Those of the layers 1...L that do not learn."""
        return set(range(1, n_layers + 1)) - set(self.trained_layers or range(self.freeze_layers + 1, n_layers + 1))

    def require_unfrozen(self, schedule: Schedule) -> None:
        """Raises TrainingError if the settings would freeze all blocks of an internal policy that is to be trained."""
        for layer, _ in schedule.phases:
            if self.trained_layers and layer < self.trained_layers[0]:
                raise TrainingError(
                    f"train_layers={self.train_layers} leaves nothing to train in layer {layer}'s policy: the layers above it do not run"
                )
            if layer <= self.freeze_layers:
                raise TrainingError(
                    f"freeze_layers={self.freeze_layers} leaves nothing but the unembedding to train in layer {layer}'s policy"
                )

    @property
    def optimizer_steps_per_rollout(self) -> float:
        """Optimizer steps that are taken on one rollout; below 1 if one optimizer step accumulates several rollouts."""
        return float(self.steps_per_generation * self.num_iterations / self.gradient_accumulation_steps)

    def optimizer_steps(self, rollouts: int, rollouts_per_epoch: int | None = None) -> float:
        """Optimizer steps that a run takes on its first `rollouts`; infinite for -1.

        An epoch ends with an optimizer step, even if that step has fewer micro-batches than gradient_accumulation_steps: a run of
        several epochs may take more steps than its rollouts would. `rollouts_per_epoch` None: all rollouts are in one epoch.
        """
        if rollouts == WHOLE_RUN:
            return float("inf")
        epochs, rest = divmod(rollouts, rollouts_per_epoch) if rollouts_per_epoch else (0, rollouts)
        return epochs * ceil((rollouts_per_epoch or 0) * self.optimizer_steps_per_rollout) + rest * self.optimizer_steps_per_rollout
