"""GRPO's objective with what the layers say: distillation into a layer, and tokens chosen by a layer's policy."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor
from trl import GRPOTrainer

from layerlens.decode.distillation import js_to_fixed
from layerlens.errors import TrainingError
from layerlens.models import count_blocks
from layerlens.results.training_log import DISTILL
from layerlens.train.internal_readings import INTERNAL, asks_internal, internal_readings
from layerlens.train.layer_states import FinalReader, States, answer_rows, kept_states, require_one_device

KEPT = "token_mask/kept"
"""In the trainer's log: the share of tokens that the mask keeps."""


class SignalTrainer(GRPOTrainer):  # type: ignore[misc]
    """TRL's GRPOTrainer with two additions to the loss while the final policy π is trained; in an internal phase both rest.

    Internal distillation (after OISD, arXiv 2605.29089), at layers l, each read with the final norm, sg: no gradient goes through it:

        loss = GRPO + λ · mean over layers and tokens of w_t · JS(π_l ‖ sg π)        w_t = 1, max(Â_t, 0) or |Â_t|

    Token masks: GRPO's loss on the share q of the batch's tokens on which a signal is largest: the entropy of π_l, KL(π_l ‖ π), or
    the layer at which the token settles. TRL's `top_entropy_quantile` is the entropy at layer L.
    """

    _active_layer: int | None = None
    """The internal layer that the loss is for; None for the final policy."""
    _read_layers: frozenset[int] = frozenset()
    """The layers whose states a loss needs."""
    _rewards_ask = False
    """Whether a reward asks for readings of its answers."""
    _states: States | None = None
    """States of the present forward pass, while a loss is computed that needs them."""

    def _set_up_signals(self, n_layers: int) -> None:
        """To be called once the model is there."""
        args = self.args
        read = set(args.distilled_layers)
        if args.token_signal is not None:
            self.top_entropy_quantile = args.token_quantile
            self.get_high_entropy_mask = self._token_mask  # of this trainer alone: without a signal the method is TRL's own
            read |= set(range(1, n_layers + 1)) if args.token_signal == "settling_depth" else {args.token_layer}
        self._rewards_ask = any(asks_internal(reward) for reward in self.reward_funcs)
        if self._rewards_ask and (self.is_fsdp_enabled or self.is_deepspeed_enabled):
            raise TrainingError("a reward asks for internal readings, and FSDP or DeepSpeed spreads the model: use one process, or DDP")
        if read or self._rewards_ask:
            require_one_device(self.model, "distillation, token_signal or a reward with internal")
            self._n_layers = n_layers or count_blocks(self.model)
            self._read_layers = frozenset({*read, n_layers}) if read else frozenset()
            self._reader = FinalReader(self.model, self.temperature)

    def _compute_loss(self, model: Any, inputs: dict[str, Any]) -> Tensor:
        if not self._read_layers or self._active_layer is not None:
            return super()._compute_loss(model, inputs)  # type: ignore[no-any-return]
        mask = inputs["completion_mask"] * inputs.get("tool_mask", 1)
        with kept_states(model, self._read_layers) as self._states:
            self._prompt_width = inputs["prompt_ids"].size(1)
            try:
                loss: Tensor = super()._compute_loss(model, inputs)
                return loss + self._distillation(self._states, mask, inputs) if self.args.distilled_layers else loss
            finally:
                self._states = None

    def _distillation(self, states: States, mask: Tensor, inputs: dict[str, Any]) -> Tensor:
        """λ times the mean over layers and tokens of the weighted divergence, as this micro-batch's part of an optimizer step."""
        args, mode = self.args, "train" if self.model.training else "eval"
        advantages = inputs["advantages"]
        advantages = (advantages if advantages.dim() > 1 else advantages[:, None]).expand(mask.shape)[mask.bool()]
        weights = {"one": torch.ones_like(advantages), "positive": advantages.clamp(min=0), "absolute": advantages.abs()}
        # the mean over the tokens of an optimizer step, as TRL takes it for loss_type dapo
        tokens = inputs["num_items_in_batch"].clamp(min=1.0) / self.accelerator.num_processes
        if mode == "train":
            tokens = tokens * self.current_gradient_accumulation_steps / args.steps_per_generation
        total = torch.zeros((), device=mask.device)
        with self.accelerator.autocast() if args.bf16 or args.fp16 else nullcontext():
            final = self._reader.norm(answer_rows(states[self._n_layers], mask, self._prompt_width)).detach()
            for layer in args.distilled_layers:
                own = self._reader.norm(answer_rows(states[layer], mask, self._prompt_width))
                js = js_to_fixed(own, self._reader.unembedding, final)
                total = total + (weights[args.distill_weights] * js).sum()
                sums = self.accelerator.reduce(torch.stack([js.detach().sum(), mask.sum().float()]), reduction="sum")
                self._metrics[mode][f"{DISTILL}{layer}"].append(float(sums[0] / sums[1]))  # NaN without a token: TRL leaves it out
        weighted: Tensor = args.distill_lambda * total / (len(args.distilled_layers) * tokens)
        return weighted

    def _generate(self, prompts: Any) -> Any:
        generated = super()._generate(prompts)
        if self._rewards_ask:
            self._prompt_ids, *_, images, _ = generated
            if images is not None:
                raise TrainingError(f"a reward asks for {INTERNAL}=, which reads texts alone, and the prompts have images")
        return generated

    def _calculate_rewards(self, inputs: Any, prompts: Any, completions: Any, completion_ids_list: Any) -> Any:
        if self._rewards_ask:
            if INTERNAL in inputs[0]:
                raise TrainingError(
                    f"a reward asks for {INTERNAL}=, the readings of its answers, and the data set has a column of that name"
                )
            model, rows = self.accelerator.unwrap_model(self.model), self.args.per_device_train_batch_size
            readings = internal_readings(model, self._reader, self._n_layers, self._prompt_ids, completion_ids_list, rows)
            inputs = [{**each, INTERNAL: reading} for each, reading in zip(inputs, readings, strict=True)]
        return super()._calculate_rewards(inputs, prompts, completions, completion_ids_list)

    def _token_mask(self, entropies: Tensor, mask: Tensor, threshold: float) -> Tensor:
        """In place of TRL's `get_high_entropy_mask`: the mask of a signal's highest tokens, and TRL's own in an internal phase."""
        if self._states is None:
            return super().get_high_entropy_mask(entropies, mask, threshold)  # type: ignore[no-any-return]
        kept: Tensor = super().get_high_entropy_mask(self._token_signal(self._states, entropies, mask), mask, threshold)
        sums = self.accelerator.reduce(torch.stack([kept.sum().float(), mask.sum().float()]), reduction="sum")
        self._metrics["train" if self.model.training else "eval"][KEPT].append(float(sums[0] / sums[1]))
        return kept

    def _token_signal(self, states: States, entropies: Tensor, mask: Tensor) -> Tensor:
        """The signal of each answer token, in the shape of the final policy's entropies; at layer L they are its entropy."""
        signal, layer = self.args.token_signal, self.args.token_layer
        if signal == "entropy" and layer == self._n_layers:
            return entropies
        found = torch.zeros_like(entropies, dtype=torch.float32)
        if not mask.any():  # a micro-batch of truncated answers alone, under mask_truncated_completions
            return found
        rows = {number: answer_rows(states[number], mask, self._prompt_width) for number in sorted(states)}
        final = rows[self._n_layers]
        with self.accelerator.autocast() if self.args.bf16 or self.args.fp16 else nullcontext():
            if signal == "settling_depth":
                values = self._reader.settling_depth([rows[number] for number in range(1, self._n_layers + 1)])
            else:
                want = {"entropy": "entropy", "kl_to_final": "kl"}[signal]
                values = self._reader.readings([rows[layer]], final, (want,))[want][:, 0]
        found[mask.bool()] = values.clamp(min=0)  # below 0 by rounding alone; TRL takes what is negative for padding
        return found
