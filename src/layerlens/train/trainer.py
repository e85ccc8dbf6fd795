"""BuPO on TRL's GRPOTrainer: internal policy alignment on the first rollouts, then GRPO as it is.

The method is one idea in three small overrides: a forward that is cut off after the layer (`models.truncate.truncated_at`), old
and reference log-probabilities of the policy that is trained, and a batch that carries the layer that it trains.
"""

from __future__ import annotations

import json
import sys
from collections import defaultdict
from collections.abc import Iterator, Sized
from contextlib import contextmanager, nullcontext
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import Trainer
from trl import GRPOConfig
from trl.models.utils import disable_gradient_checkpointing
from trl.trainer.utils import use_adapter

from layerlens.errors import TrainingError
from layerlens.models import Generation, count_blocks, read_lens, truncated_at
from layerlens.prompts.sample import Sample
from layerlens.results.training_log import PHASE
from layerlens.rewards.boxed import last_boxed
from layerlens.selection import LayerChoice
from layerlens.storage.files import write_text
from layerlens.storage.training_folder import SCHEDULE
from layerlens.train.base_trainer import FORWARD_EXTRAS, BaseTrainer
from layerlens.train.choice_file import kept_choice
from layerlens.train.config import BuPOConfig
from layerlens.train.layer_choice import choose_by_analysis, choose_together, require_layers, require_lens, warn_of_differences
from layerlens.train.layer_rates import DecayWithoutGradient, blocks_path, is_scaled, layer_factors, scaled_groups
from layerlens.train.layer_states import require_one_device
from layerlens.train.model_card import model_card
from layerlens.train.monitor import Monitor
from layerlens.train.plan import plan_rows, require_same_schedule, schedule_contents
from layerlens.train.resume import require_resumable_fsdp
from layerlens.train.schedule import Schedule, Span
from layerlens.train.trained_weights import freeze_up_to, require_trainable, train_alone, warn_of_rounding
from layerlens.train.trl_head import use_readout_head
from layerlens.train.unshard import FullModel
from layerlens.train.vllm_answers import vllm_answers
from layerlens.train.waiting import on_main

LAYER = "internal_layer"
"""Under this key a batch carries the layer that it trains, as a 0-d tensor (0-d tensors survive TRL's shuffle and split)."""

INTERNAL = "internal/"
"""In front of what TRL logs of the loss (entropy, kl, clip_ratio/...) in an internal phase."""


class BuPOTrainer(BaseTrainer):
    """TRL's GRPOTrainer with internal phases in front. Takes what GRPOTrainer takes, with a `BuPOConfig` as `args`.

    In an internal phase at layer l, the policy in the objective is the internal policy π_l = softmax(E_u · N(H^l)), with N the
    identity (`internal_norm="none"`) or the final norm; with `internal_lens` H^l is carried to the final norm by a fitted lens, which is
    held fixed. The objective, to be maximised, is that of the paper's internal policy
    alignment (arXiv 2512.19673, whose first version calls it InterGRPO; docs/definitions.md, "BuPO"):

        J_IPA = E[ 1/G Σ_i 1/|o_i| Σ_t min( ρ_it Â_i, clip(ρ_it, 1 - ε, 1 + ε) Â_i ) ]
        ρ_it = π_l(o_it | q, o_i<t) / π_l,old(o_it | q, o_i<t)

    The answers o_1...o_G to a problem q are sampled from the FINAL policy, and Â_i is the advantage of answer o_i, normalised in
    its group. So ρ does not correct for the sampler: it limits how far the internal policy moves in one rollout step. GRPO is
    J_IPA with the final policy in ρ. The paper's equation, as above, takes the mean over each answer first (`loss_type="grpo"`);
    its scripts take one mean over all tokens (`loss_type="dapo"`, TRL's default), and for negative advantages they bound ρ by 10
    (`delta=10`).

    Blocks above l do not run, have no gradient and do not move. All else (samplers, rewards, advantages, LoRA, logging,
    checkpoints) is TRL's.

    Training is counted in rollouts and in optimizer steps:
        rollout: one generation batch, that is all the answers that are sampled at once. A rollout step is all that is done with
            one rollout: sampling, scoring, and every optimizer step on it. The paper's s_inter is a number of rollout steps, and
            `internal_rollouts` is that number.
        optimizer step: one change of the weights. `max_steps`, `monitor_every` and the logs count optimizer steps. A rollout step
            consists of steps_per_generation · num_iterations / gradient_accumulation_steps of them.

    Attributes:
        schedule: the internal phases as they will be run.
        choice: how the layer was chosen, by "auto" or in the file that `internal_layer` names; None if its number was given.

    Raises TrainingError if the configuration asks for a layer that the model does not have, if the layer was chosen on a
    model of another depth, and if "auto" finds no layer. Warns if the layer was chosen on other weights or under another norm,
    and if weights are trained in 16 bits.
    """

    _tag_names = ["trl", "bupo"]  # noqa: RUF012
    _name = "BuPO"
    _paper = {  # noqa: RUF012
        "title": "Bottom-up Policy Optimization: Your Language Model Policy Secretly Contains Internal Policies",
        "id": "2512.19673",
    }

    def __init__(self, model: Any, reward_funcs: Any = None, args: GRPOConfig | None = None, *more: Any, **options: Any):
        args = BuPOConfig.of(args, model)
        if args.trains_internally and args.ddp_find_unused_parameters is None:
            args.ddp_find_unused_parameters = True  # blocks above the layer take no part in the internal phase
        n_layers = require_layers(model, args) if args.reads_layers else 0  # before a refusal would waste what is loaded
        self._lens = None if args.internal_lens == "logit" else read_lens(args.internal_lens)
        if options.get("environment_factory") and (args.monitor_every or args.chooses_layer):
            raise TrainingError(
                "prompts that an environment makes are not there before training, and the monitor and internal_layer='auto' need them: "
                "set monitor_every=0, and name a layer"
            )
        in_memory = isinstance(model, nn.Module)
        if args.layer_choice and in_memory and args.process_index == 0:  # before TRL puts adapters into it
            warn_of_differences(args.layer_choice, model, args.internal_norm, args.internal_lens.partition(":")[0])
        super().__init__(model, reward_funcs, args, *more, **options)
        if args.layer_choice and not in_memory and args.process_index == 0:
            warn_of_differences(args.layer_choice, self.model, args.internal_norm, args.internal_lens.partition(":")[0])
        if self._lens is not None and args.trains_internally:
            require_lens(self._lens, self.model, n_layers, [layer for layer, _ in args.schedule().phases])
        self.choice = self._analyse_and_choose() if args.chooses_layer else args.layer_choice
        self.schedule: Schedule = args.schedule(self.choice.layer if self.choice else None)
        args.require_unfrozen(self.schedule)  # now with the layer that "auto" has chosen
        first = next((layer for layer, _ in self.schedule.phases), args.named_layer)
        above = first if args.layer_lr_above is None else args.layer_lr_above
        self.layer_factors = layer_factors(n_layers, args.layer_lr_factors, args.layer_lr_decay, above)
        self._set_up_signals(n_layers)
        freeze_up_to(self.model, args.freeze_layers)
        if args.trained_layers:
            train_alone(self.model, args.trained_layers)
        for layer, _ in self.schedule.phases:
            require_trainable(self.model, layer, args.internal_norm)
        for layer in args.distilled_layers:
            require_trainable(self.model, layer, "final")
        keeps_float32 = self.is_deepspeed_enabled or (self.is_fsdp_enabled and self.accelerator.mixed_precision != "no")
        if args.process_index == 0 and not keeps_float32:
            warn_of_rounding(self.model, args.learning_rate)
        if self.schedule.phases and self.is_fsdp_enabled:
            require_resumable_fsdp(args, self.accelerator.state.fsdp_plugin)
        if args.trains_internally and args.decay_above and args.weight_decay > 0:
            self.add_callback(DecayWithoutGradient())
        if args.monitor_every:
            self.add_callback(self._monitor(args.monitor_layer or first or (args.trained_layers or [n_layers])[0]))

    # ---- which policy a batch is for

    def _generate_and_score_completions(self, inputs: Any) -> dict[str, Any]:
        layer = self.schedule.layer_at(self.rollout) if self.model.training else None
        output: dict[str, Any] = super()._generate_and_score_completions(inputs)  # with vLLM's correction: all of the final policy
        if layer is None:
            return output
        output[LAYER] = torch.tensor(layer)
        output.pop("sampling_per_token_logps", None)  # the final policy's
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
        is_final_policy = layer is None or (layer == count_blocks(model) and norm == "final")
        with truncated_at(model, layer, norm, self._lens), nullcontext() if is_final_policy else use_readout_head():
            return super()._get_per_token_logps_and_entropies(model, *args, **kwargs)

    def _compute_loss(self, model: Any, inputs: dict[str, Any]) -> Tensor:
        layer = inputs.get(LAYER)
        self._metrics["train" if self.model.training else "eval"][PHASE].append(float(layer or 0))
        with nullcontext() if layer is None else self._internal_objective(int(layer)):
            return super()._compute_loss(model, inputs)

    @contextmanager
    def _internal_objective(self, layer: int) -> Iterator[None]:
        """Inside, the loss is that of layer l's policy: what it logs is named `internal/...`, and adaptive entropy control rests.

        Entropy, KL and clip ratios of an internal policy are other quantities than those of the final policy. The controller has
        one target, which is for the final policy's entropy: it starts when the final policy is trained, from its first state.
        """
        logged, adaptive = self._metrics["train"], self.args.use_adaptive_entropy
        self._metrics["train"], self._active_layer = defaultdict(list), layer
        quantile, self.top_entropy_quantile = self.top_entropy_quantile, self.args.top_entropy_quantile
        if adaptive:
            self.use_adaptive_entropy = self._entropy_bonus_enabled = False
        try:
            yield
        finally:
            for name, values in self._metrics["train"].items():
                logged[INTERNAL + name].extend(values)
            self._metrics["train"], self._active_layer, self.top_entropy_quantile = logged, None, quantile
            if adaptive:
                self.use_adaptive_entropy = self._entropy_bonus_enabled = True

    # ---- learning rates by layer, and the start of training

    def create_optimizer(self, *args: Any, **kwargs: Any) -> Any:
        """The optimizer, its groups split by the factors of the layers. Raises TrainingError if it has a schedule already."""
        optimizer = super().create_optimizer(*args, **kwargs)
        if set(self.layer_factors.values()) - {1.0} and not is_scaled(optimizer.param_groups):  # as an earlier call of train left them
            if self.lr_scheduler is not None:
                raise TrainingError(
                    "a learning-rate schedule of your own counts the optimizer's groups before layer_lr_factors splits them: give the "
                    "optimizer alone, optimizers=(optimizer, None), and choose lr_scheduler_type"
                )
            names = {id(weight): name for name, weight in self.model.named_parameters()}
            optimizer.param_groups[:] = scaled_groups(optimizer.param_groups, names, blocks_path(self.model), self.layer_factors)
        return optimizer

    def plan(self) -> list[tuple[str, str]]:
        """What will be trained, and when or how, as rows of two texts."""
        return list(plan_rows(self.args, self._spans(), self.layer_factors, self.choice))

    def create_model_card(self, model_name: str | None = None, dataset_name: str | None = None, tags: Any = None) -> None:
        """Writes README.md beside the model: what it was, what was trained, and by which rewards."""
        if self.is_world_process_zero():
            named = {*self._tag_names, *([tags] if isinstance(tags, str) else tags or ())}
            card = model_card(self, model_name or Path(self.args.output_dir).resolve().name, dataset_name, sorted(named))
            write_text(Path(self.args.output_dir) / "README.md", card)

    def _spans(self) -> list[Span]:
        """The phases, in the optimizer steps of this data set. An epoch's last optimizer step may take fewer micro-batches."""
        count = len(self.train_dataset) if isinstance(self.train_dataset, Sized) else None
        problems = self.args.generation_batch_size // self.num_generations
        return list(self.schedule.spans(partial(self.args.optimizer_steps, rollouts_per_epoch=count and count // problems)))

    def train(self, resume_from_checkpoint: Any = None, *args: Any, **kwargs: Any) -> Any:
        """Shows the plan and writes it to `schedule.json`, then trains as GRPOTrainer does.

        Raises TrainingError if a run that is resumed had another schedule before.
        """
        contents = schedule_contents(self.args, self._spans(), self.layer_factors, self.choice)
        file = Path(self.args.output_dir) / SCHEDULE
        if resume_from_checkpoint and file.exists():
            require_same_schedule(file, contents)
        self.accelerator.wait_for_everyone()
        if self.accelerator.is_main_process:
            for what, how in self.plan():
                print(f"{what:34}  {how}", file=sys.stderr)
            write_text(file, json.dumps(contents, indent=2, ensure_ascii=False) + "\n")
        return super().train(resume_from_checkpoint, *args, **kwargs)

    # ---- what reads the model: "auto" and the monitor

    def _analyse_and_choose(self) -> LayerChoice:
        if self.args.resume_from_checkpoint:  # on other answers another layer may be chosen
            kept = on_main(self.accelerator, partial(kept_choice, Path(self.args.output_dir)))
            if kept is not None:
                return kept
        require_one_device(self.model, "internal_layer='auto'")
        prompts, args = self._prompts(self.args.internal_samples), self.args
        plugin = getattr(self.accelerator.state, "fsdp_plugin", None)
        if self.use_vllm and not getattr(plugin, "cpu_ram_efficient_loading", False):  # which leaves the weights to one process
            prompts = vllm_answers(self.vllm_generation, prompts)

        def choose() -> LayerChoice:
            norm, rule, device = args.internal_norm, args.internal_rule, self.accelerator.device
            return choose_by_analysis(self.model, self.processing_class, prompts, self._generation(), norm, rule, device)

        return choose_together(self.accelerator, choose)

    def _monitor(self, layer: int) -> Monitor:
        return Monitor(
            Path(self.args.output_dir),
            self._prompts(self.args.monitor_problems),
            self.processing_class,
            FullModel(self.model, self.accelerator, self.is_fsdp_enabled),
            every=self.args.monitor_every,
            phase_ends=[last for *_, last in self._spans() if last],
            layer=layer,
            norm=self.args.internal_norm,
            repeats=self.args.monitor_repeats,
            generation=self._generation(),
            answer=last_boxed,
            sample=partial(vllm_answers, self.vllm_generation) if self.use_vllm else None,
            report=self._report,
        )

    def _report(self, row: dict[str, float]) -> None:
        """Logs a snapshot's row at its own optimizer step; TRL's log would average it over the steps of an entry."""
        should_log = self.control.should_log  # logging a row clears it
        Trainer.log(self, dict(row))
        self.control.should_log = should_log

    def _prompts(self, n: int) -> list[Sample]:
        """The first n training prompts, with exactly the tokens that training samples from."""
        tokens, *_ = self._tokenize_prompts([row["prompt"] for row in islice(self.train_dataset, n)])
        return [Sample(ids, len(ids), str(index)) for index, ids in enumerate(tokens)]

    def _generation(self) -> Generation:
        return Generation(self.max_completion_length, self.temperature, self.top_p, self.args.seed)
