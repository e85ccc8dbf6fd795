"""BuPO on TRL's GRPOTrainer: internal policy alignment for the first rollout steps, then GRPO as it is.

The method is one idea in three small overrides: the cut in the forward (`internal.truncated_at`), old and reference
log-probabilities of the policy that is trained, and a batch that knows which policy it is for.
"""

from __future__ import annotations

import json
import logging
import sys
from contextlib import nullcontext
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import broadcast_object_list
from torch import Tensor, nn
from transformers import AutoConfig, Trainer, TrainerCallback
from trl import GRPOTrainer
from trl.models.utils import disable_gradient_checkpointing
from trl.trainer.utils import use_adapter

from layerlens.analysis.pipeline import analyze
from layerlens.errors import TrainingError
from layerlens.models import Generation, LensModel, causal_lm, count_blocks, layout_for, truncated_at
from layerlens.prompts.sample import Sample
from layerlens.results.training_log import SCHEDULE
from layerlens.rewards.boxed import last_boxed
from layerlens.selection.layer import LayerChoice, select_layer
from layerlens.storage.files import write_text
from layerlens.train.config import BuPOConfig
from layerlens.train.head import streamed_head
from layerlens.train.monitor import Monitor
from layerlens.train.rates import blocks_path, describe, freeze_up_to, layer_factors, scaled_groups
from layerlens.train.schedule import WHOLE_RUN, Schedule
from layerlens.train.whole import Whole

log = logging.getLogger("layerlens.train")

LAYER = "internal_layer"
"""Under this key a batch carries the layer it trains, as a 0-d tensor (those survive TRL's shuffle and split)."""

FORWARD_EXTRAS = (
    "pixel_values", "image_grid_thw", "num_images", "pixel_attention_mask", "spatial_shapes", "num_tiles", "image_sizes",
    "token_type_ids", "mm_token_type_ids", "image_position_ids",
)  # fmt: skip


class BuPOTrainer(GRPOTrainer):  # type: ignore[misc]
    """TRL's GRPOTrainer with internal phases in front. Takes what GRPOTrainer takes, with a `BuPOConfig` as `args`.

    In an internal phase the loss is GRPO's of the policy softmax(E_u · N(H^layer)) on completions of the full policy. Blocks
    above the layer do not run, get no gradient and do not move. Everything else (samplers, rewards, advantages, LoRA,
    logging, checkpoints) is TRL's.

    Attributes:
        schedule: the internal phases as they will be run.
        choice: how "auto" chose the layer, None where it did not have to.

    Raises TrainingError where the configuration asks for a layer that the model lacks, or "auto" finds none.
    """

    _tag_names = ["trl", "bupo"]  # noqa: RUF012
    _name = "BuPO"
    _paper = {  # noqa: RUF012
        "title": "Bottom-up Policy Optimization: Your Language Model Policy Secretly Contains Internal Policies",
        "id": "2512.19673",
    }

    def __init__(self, model: Any, reward_funcs: Any, args: BuPOConfig, **kwargs: Any):
        if not isinstance(args, BuPOConfig):
            raise TrainingError(f"BuPOTrainer needs a BuPOConfig as args, got {type(args).__name__}")
        if args.trains_internally and args.ddp_find_unused_parameters is None:
            args.ddp_find_unused_parameters = True  # blocks above the layer take no part in the internal phase
        self._active_layer: int | None = None
        self._started_at = 0
        n_layers = _depth(model, args)  # before anything is loaded or started that a refusal would waste
        asked = [("the internal phase", layer) for layer, _ in args.schedule().phases] + [("monitor_layer", args.monitor_layer or 1)]
        for who, layer in asked:
            if layer > n_layers:
                raise TrainingError(f"the model has {n_layers} layers; {who} asks for layer {layer}")
        super().__init__(model=model, reward_funcs=reward_funcs, args=args, **kwargs)
        self.choice = self._choose_layer() if args.internal_layer == "auto" else None
        self.schedule: Schedule = args.schedule(self.choice.layer if self.choice else None)
        args.require_unfrozen(self.schedule)  # what "auto" has chosen too
        first = next((layer for layer, _ in self.schedule.phases), None)
        above = first if args.layer_lr_above is None else args.layer_lr_above
        self.layer_factors = layer_factors(n_layers, args.layer_lr_factors, args.layer_lr_decay, above)
        freeze_up_to(self.model, args.freeze_layers)
        if args.trains_internally and args.decay_above and args.weight_decay > 0:
            self.add_callback(_DecayUntouched())
        if args.monitor_steps:
            self.add_callback(self._monitor(n_layers))

    # ---- which policy a batch is for

    @property
    def rollout(self) -> int:
        """Rollout steps done before the one at hand, earlier sessions of a resumed run included."""
        if self._step == 0:
            self._started_at = self.state.global_step
        done = self._started_at * self.args.gradient_accumulation_steps + self._step
        return int(done // (self.args.steps_per_generation * self.num_iterations))

    def _generate_and_score_completions(self, inputs: Any) -> dict[str, Any]:
        layer = self.schedule.layer_at(self.rollout) if self.model.training else None
        output: dict[str, Any] = super()._generate_and_score_completions(inputs)  # rollouts, rewards, vLLM's correction: the full policy's
        if layer is None:
            return output
        output[LAYER] = torch.tensor(layer)
        output.pop("sampling_per_token_logps", None)  # the full policy's
        if self.args.gradient_accumulation_steps % (self.args.steps_per_generation * self.num_iterations) == 0:
            output.pop("old_per_token_logps", None)  # on-policy: the loss detaches its own
        else:
            output["old_per_token_logps"] = self._internal_logps(self.model, output, layer)
        if self.beta != 0.0:
            output["ref_per_token_logps"] = self._reference_logps(output, layer)
        return output

    def _reference_logps(self, batch: dict[str, Any], layer: int) -> Tensor:
        if self.ref_model is not None:
            return self._internal_logps(self.ref_model, batch, layer)
        peft_model = self.accelerator.unwrap_model(self.model)
        with use_adapter(peft_model, adapter_name="ref" if "ref" in peft_model.peft_config else None):
            return self._internal_logps(self.model, batch, layer)

    @torch.no_grad()
    def _internal_logps(self, model: Any, batch: dict[str, Any], layer: int) -> Tensor:
        ids = torch.cat([batch["prompt_ids"], batch["completion_ids"]], dim=1)
        mask = torch.cat([batch["prompt_mask"], batch["completion_mask"]], dim=1)
        extras = {key: batch[key] for key in FORWARD_EXTRAS if batch.get(key) is not None}
        self._active_layer = layer
        try:
            with disable_gradient_checkpointing(self.model, self.args.gradient_checkpointing_kwargs):
                logps, *_ = self._get_per_token_logps_and_entropies(
                    model, ids, mask, batch["completion_ids"].size(1), batch_size=self.args.per_device_train_batch_size, **extras
                )
        finally:
            self._active_layer = None
        return logps  # type: ignore[no-any-return]

    def _get_per_token_logps_and_entropies(self, model: Any, *args: Any, **kwargs: Any) -> Any:
        layer, norm = self._active_layer, self.args.internal_norm
        whole = layer is None or (layer == count_blocks(model) and norm == "final")
        with truncated_at(model, layer, norm), nullcontext() if whole else streamed_head():
            return super()._get_per_token_logps_and_entropies(model, *args, **kwargs)

    def _compute_loss(self, model: Any, inputs: dict[str, Any]) -> Tensor:
        layer = inputs.get(LAYER)
        self._active_layer = None if layer is None else int(layer)
        mode = "train" if self.model.training else "eval"
        self._metrics[mode]["bupo/internal_layer"].append(float(self._active_layer or 0))
        try:
            return super()._compute_loss(model, inputs)  # type: ignore[no-any-return]
        finally:
            self._active_layer = None

    # ---- layer-wise rates, and what is shown at start

    def create_optimizer(self, *args: Any, **kwargs: Any) -> Any:
        optimizer = super().create_optimizer(*args, **kwargs)
        if set(self.layer_factors.values()) != {1.0}:
            names = {id(weight): name for name, weight in self.model.named_parameters()}
            groups = scaled_groups(optimizer.param_groups, names, blocks_path(self.model), self.layer_factors, self.args.learning_rate)
            optimizer.param_groups[:] = groups
        return optimizer

    def plan(self) -> list[tuple[str, str]]:
        """What will be trained when and how, as rows of two texts."""
        rows = [("choice", self.choice.reason)] if self.choice else []
        for layer, steps in self.schedule.phases:
            updates = self.args.optimizer_steps(steps)
            length = "the rest of the run" if steps == WHOLE_RUN else f"{steps} rollout steps ({updates:g} optimizer steps)"
            rows.append((f"internal policy of layer {layer}", f"{length}, norm {self.args.internal_norm}"))
        if self.schedule.rollouts != WHOLE_RUN:
            rows.append(("whole policy (GRPO)", "then" if self.schedule.phases else "throughout"))
        if set(self.layer_factors.values()) != {1.0} or self.args.freeze_layers:
            rows += describe(self.layer_factors, self.args.freeze_layers)
        if self.args.save_strategy == "steps" and self.args.save_steps >= 1 and self.args.save_steps % self.args.updates:
            every, length = f"{self.args.save_steps:g}", f"{self.args.updates:g}"
            rows.append(("checkpoints", f"every {every} steps, some inside a rollout of {length}, which a resumed run samples anew"))
        return rows

    def train(self, resume_from_checkpoint: Any = None, *args: Any, **kwargs: Any) -> Any:
        """Shows the plan and writes it to `schedule.json`, then trains as GRPOTrainer does.

        Raises TrainingError where a run that goes on had another schedule before.
        """
        record = self.record()
        file = Path(self.args.output_dir) / SCHEDULE
        before = json.loads(file.read_text(encoding="utf-8")) if resume_from_checkpoint and file.exists() else record
        if (before["phases"], before["norm"]) != (record["phases"], record["norm"]):
            raise TrainingError(
                f"{file} says that the run to go on with had another schedule: restore its settings, or take a new output_dir"
            )
        self.accelerator.wait_for_everyone()
        if self.accelerator.is_main_process:
            for what, how in self.plan():
                print(f"{what:34}  {how}", file=sys.stderr)
            write_text(file, json.dumps(record, indent=2, ensure_ascii=False) + "\n")
        return super().train(resume_from_checkpoint, *args, **kwargs)

    def record(self) -> dict[str, Any]:
        """The schedule as it is kept on disk: phases in rollout and optimizer steps, and how "auto" chose."""
        phases = [
            {"layer": layer, "rollout_steps": None if steps == WHOLE_RUN else steps, "first_step": first, "last_step": last}
            for layer, steps, first, last in self.schedule.spans(self.args.updates)
        ]
        choice = self.choice.to_dict() if self.choice else None
        return {"norm": self.args.internal_norm, "optimizer_steps_per_rollout": self.args.updates, "phases": phases, "choice": choice}

    def _choose_layer(self) -> LayerChoice:
        """Analyses the model on its first training prompts, on the main process, and lets all know."""
        found: list[Any] = [None]
        if self.accelerator.is_main_process:
            try:
                found = [self._analyse_and_choose()]
            except Exception as error:  # every process must hear of it, not only this one
                found = [error]
        broadcast_object_list(found)
        choice = found[0]
        if isinstance(choice, Exception):
            raise choice
        if choice.layer is None:
            raise TrainingError(
                f"internal_layer='auto' found no layer to train: {choice.reason}. Name one, or choose another internal_rule"
            )
        log.info("internal_layer='auto': %s", choice.reason)
        return choice  # type: ignore[no-any-return]

    def _monitor(self, n_layers: int) -> Monitor:
        layer = self.args.monitor_layer or (self.schedule.phases[0][0] if self.schedule.phases else n_layers)
        return Monitor(
            Path(self.args.output_dir),
            self._prompts(self.args.monitor_problems),
            self.processing_class,
            Whole(self.model, self.accelerator, self.is_fsdp_enabled),
            every=self.args.monitor_steps,
            also=[last for *_, last in self.schedule.spans(self.args.updates) if last],
            layer=layer,
            norm=self.args.internal_norm,
            repeats=self.args.monitor_repeats,
            generation=self._generation(),
            answer=last_boxed,
            report=self._report,
        )

    def _report(self, row: dict[str, float]) -> None:
        """To whatever logs training, at the step of the look; not through TRL's averages over the steps of an entry."""
        due = self.control.should_log  # which logging takes for done
        Trainer.log(self, dict(row))
        self.control.should_log = due

    def _prompts(self, n: int) -> list[Sample]:
        """The first n training prompts, of the very tokens that training samples from."""
        tokens, *_ = self._tokenize_prompts([row["prompt"] for row in islice(self.train_dataset, n)])
        return [Sample(ids, len(ids), str(index)) for index, ids in enumerate(tokens)]

    def _generation(self) -> Generation:
        return Generation(self.max_completion_length, self.temperature, self.top_p, self.args.seed)

    def _analyse_and_choose(self) -> LayerChoice:
        model = causal_lm(self.model)
        home = model.device  # FSDP leaves the model on the CPU until it is sharded
        try:
            lens = LensModel.wrap(model.to(self.accelerator.device), self.processing_class)
            prompts = self._prompts(self.args.internal_samples)
            run = analyze(lens, prompts, generate=self._generation(), metrics=("entropy", "agrees"), norm=self.args.internal_norm)
        finally:
            model.to(home)
        return select_layer(run, self.args.internal_rule)


def _depth(model: Any, args: BuPOConfig) -> int:
    """L, from the model or from the configuration of the one that is named; refuses an architecture that has no cut."""
    if isinstance(model, nn.Module):
        return count_blocks(model)
    options = {name: value for name, value in (args.model_init_kwargs or {}).items() if name in ("revision", "trust_remote_code")}
    config = AutoConfig.from_pretrained(model, **options)
    layout_for(config)
    return int(config.num_hidden_layers)


class _DecayUntouched(TrainerCallback):  # type: ignore[misc]
    """Gives weights without a gradient one of zeros, so that weight decay acts on them as on all others."""

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        for weight in model.parameters():
            if weight.requires_grad and weight.grad is None:
                weight.grad = torch.zeros_like(weight)
