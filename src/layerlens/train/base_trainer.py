"""TRL's GRPOTrainer, made to resume exactly, to stop when nothing is learned, and to compute no more padding than it must."""

from __future__ import annotations

from typing import Any

import torch
from accelerate.utils import send_to_device
from torch import Tensor

from layerlens.train.guards import require_finite_gradient, require_finite_loss, require_finite_weights, require_rewards
from layerlens.train.padding import padded, without_common_padding
from layerlens.train.resume import EpochOrder, Shape, fill_adam_states, load_position, save_position, set_learning_rate
from layerlens.train.signal_trainer import SignalTrainer

FORWARD_EXTRAS = (
    "pixel_values", "image_grid_thw", "num_images", "pixel_attention_mask", "spatial_shapes", "num_tiles", "image_sizes",
    "token_type_ids", "mm_token_type_ids", "image_position_ids",
)  # fmt: skip
"""What a batch may hold beside tokens and masks for the model's forward."""


class BaseTrainer(SignalTrainer):
    """GRPO as TRL has it. A run that is resumed takes the steps of a run that never stopped, bit for bit.

    TRL 1.16 counts from 0 again in a run that is resumed: it forgets how many rollouts are done, samples the present rollout anew
    and, from the second epoch on, takes the problems in the first epoch's order. Here each process keeps, beside its random state, its
    count of micro-batches and, inside a rollout, the rollout's batches; the order of problems depends on the epoch alone; and
    weights that have had no gradient yet have an optimizer state, which FSDP2 needs to resume.

    A checkpoint that lacks one of these files, of another number of processes, or of rollouts in more or fewer micro-batches is resumed
    too: what is left of a rollout that it lies in is sampled anew, by all processes. Another `learning_rate` takes effect, which
    transformers would not let it.

    Raises TrainingError in the middle of a run if a loss, a gradient or a weight is not finite, and if every reward of a rollout
    failed.
    """

    _rate_is_ours = False
    """Whether the optimizer was made from the configuration's learning rate."""

    # ---- where a run is

    @property
    def rollout(self) -> int:
        """Rollouts that are done, those before a resumed run's checkpoint included: the number of the present one, from 0."""
        return int(self._step // self._rollout_shape.micro_batches)

    @property
    def _rollout_shape(self) -> Shape:
        return Shape(self.args.world_size, self.args.steps_per_generation, self.num_iterations)

    def train(self, *args: Any, **kwargs: Any) -> Any:
        self._step, self._buffered_inputs = 0, None  # an earlier call's
        done = super().train(*args, **kwargs)
        self._require_finite_weights()
        return done

    def _get_train_sampler(self, dataset: Any = None) -> Any:
        return EpochOrder(super()._get_train_sampler(dataset), lambda: int(self.state.epoch or 0))

    def _save_rng_state(self, output_dir: str) -> None:
        super()._save_rng_state(output_dir)
        inside = self._step % self._rollout_shape.micro_batches != 0
        rollout = self._buffered_inputs if inside else None
        save_position(output_dir, self.args.process_index, self._rollout_shape, self._step, rollout)
        self.accelerator.wait_for_everyone()  # what is written after this says that the checkpoint is whole

    def _load_rng_state(self, checkpoint: str | None) -> None:
        super()._load_rng_state(checkpoint)
        if checkpoint is None:
            return
        kept = load_position(checkpoint, self.args.process_index, self._rollout_shape)
        step, batches = kept or (self.state.global_step * self.args.gradient_accumulation_steps, None)
        here = torch.tensor([[step, batches is not None]], device=self.accelerator.device)
        everywhere = self.accelerator.gather(here)  # on disks of their own, some processes may find no file
        self._step = int(everywhere[0, 0])
        self._buffered_inputs = send_to_device(batches, self.args.device) if everywhere[:, 1].all() else None

    def create_optimizer(self, *args: Any, **kwargs: Any) -> Any:
        self._rate_is_ours = self._rate_is_ours or self.optimizer is None
        return super().create_optimizer(*args, **kwargs)

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        super()._load_optimizer_and_scheduler(checkpoint)
        if checkpoint is not None and self._rate_is_ours:
            set_learning_rate(self.optimizer, self.lr_scheduler, self.args.learning_rate)

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        if self.is_fsdp_enabled:
            optimizer: Any = self.optimizer
            fill_adam_states(getattr(optimizer, "optimizer", optimizer))
        super()._save_optimizer_and_scheduler(output_dir)

    # ---- what stops it

    def _require_finite_weights(self) -> None:
        require_finite_weights(self.model, self.accelerator, self.state.global_step)

    def _save_checkpoint(self, *args: Any, **kwargs: Any) -> None:
        self._require_finite_weights()
        super()._save_checkpoint(*args, **kwargs)

    def _generate_and_score_completions(self, inputs: Any) -> dict[str, Any]:
        self._require_finite_weights()
        return super()._generate_and_score_completions(inputs)  # type: ignore[no-any-return]

    def _calculate_rewards(self, *args: Any) -> Tensor:
        score = super()._calculate_rewards
        if not self.model.training:  # an evaluation goes on without a score, as TRL's does
            return score(*args)  # type: ignore[no-any-return]
        return require_rewards(lambda: score(*args), self.reward_funcs, self.reward_func_names, self.accelerator, self.num_generations)

    def _compute_loss(self, model: Any, inputs: dict[str, Any]) -> Tensor:
        loss: Tensor = super()._compute_loss(model, inputs)
        if self.model.training:
            require_finite_loss(loss, self.accelerator, self.state.global_step + 1)
        return loss

    def _get_grad_norm(self, *args: Any, **kwargs: Any) -> Any:
        norm = super()._get_grad_norm(*args, **kwargs)
        if self.accelerator.scaler is None:  # which takes no step on such a gradient, and goes on
            require_finite_gradient(norm, self.state.global_step + 1)
        return norm

    # ---- what it computes

    def _get_per_token_logps_and_entropies(
        self, model: Any, input_ids: Tensor, attention_mask: Tensor, logits_to_keep: int, batch_size: int | None = None, **options: Any
    ) -> Any:
        compute = super()._get_per_token_logps_and_entropies
        if self.pad_to_multiple_of or any(options.get(extra) is not None for extra in FORWARD_EXTRAS):
            return compute(model, input_ids, attention_mask, logits_to_keep, batch_size, **options)
        found, width = [], input_ids.size(1)
        for rows, padding in without_common_padding(attention_mask, logits_to_keep, batch_size or len(input_ids)):
            ids, mask = (tensor[rows, : width - padding] for tensor in (input_ids, attention_mask))
            logps, entropies, aux_loss = compute(model, ids, mask, logits_to_keep - padding, **options)
            found.append((padded(logps, padding), None if entropies is None else padded(entropies, padding), aux_loss))
        logps, entropies, aux_losses = zip(*found, strict=True)
        return (
            torch.cat(logps),
            None if entropies[0] is None else torch.cat(entropies),
            None if aux_losses[0] is None else torch.stack(aux_losses).mean(),
        )
