"""The layer of the internal phase: chosen by "auto", and held to the depth and the weights of the model that is trained."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import nn
from transformers import AutoConfig

from layerlens.analysis.pipeline import analyze
from layerlens.errors import ModelLoadError, TrainingError, message_of
from layerlens.models import FittedLens, Generation, LensModel, causal_lm, count_blocks, find_decoder_parts, require_readable, text_config
from layerlens.prompts.sample import Sample
from layerlens.selection import LayerChoice, select_layer
from layerlens.selection.words import layer_ranges, nats
from layerlens.train.config import BuPOConfig
from layerlens.train.signal_options import require_below_final
from layerlens.train.waiting import measuring_seconds, on_main, require_in_time, sampling_seconds, work_on
from layerlens.types import FORWARD_NORMS, READOUT_METRICS, ForwardNorm, Rule

log = logging.getLogger("layerlens.train")

REMEDY = "lower internal_samples or max_completion_length, or choose beforehand (layerlens analyze, select) and name the file"
"""What to change if choosing takes longer than other processes wait."""


def require_layers(model: nn.Module | str, args: BuPOConfig) -> int:
    """L, of the model or, before its weights are read, of the model with this name.

    Raises TrainingError if `args` asks for a layer above L, or for one that was chosen on a model of another depth;
    ModelLayoutError if the architecture is not described; ModelLoadError if the configuration cannot be read.
    """
    n_layers = count_blocks(model) if isinstance(model, nn.Module) else _depth_of(model, args.model_init_kwargs or {})
    choice = args.layer_choice
    if choice is not None and choice.n_layers != n_layers:
        raise TrainingError(
            f"internal_layer was chosen on {choice.model}, which has {choice.n_layers} layers, and the model to train has {n_layers}: "
            "choose on a run of this model"
        )
    asked = [("the internal phase", layer) for layer, _ in args.schedule().phases]
    asked += [("internal_layer", args.named_layer or 1), ("monitor_layer", args.monitor_layer or 1)]
    asked += [("train_layers", layer) for layer in (args.trained_layers or ())[-1:]]
    asked += [("token_layer", args.token_layer or 1), *(("distill_layers", layer) for layer in args.distilled_layers[-1:])]
    for who, layer in asked:
        if layer > n_layers:
            raise TrainingError(f"the model has {n_layers} layers; {who} asks for layer {layer}")
    require_below_final(args, n_layers)
    return n_layers


def _depth_of(name: str, options: Mapping[str, Any]) -> int:
    try:
        config = AutoConfig.from_pretrained(name, **{key: options[key] for key in ("revision", "trust_remote_code") if key in options})
    except (OSError, ValueError) as error:
        raise ModelLoadError(f"{name}: its configuration could not be read ({message_of(error, 300)})") from error
    require_readable(config)
    return int(text_config(config).num_hidden_layers)


def require_lens(lens: FittedLens, model: nn.Module, n_layers: int, layers: Sequence[int]) -> None:
    """Raises SelectionError unless the lens fits the model's shape and holds a map for every layer that is trained.

    Logs a warning if the lens names a model, or weights, that are not known to be those which training starts from.
    """
    lens.require_shape(int(text_config(causal_lm(model).config).hidden_size), n_layers)
    for layer in layers:
        lens.place(layer, "resid_post", n_layers)
    if lens.weights is None or hasattr(model, "peft_config") or any(hasattr(weight, "ds_id") for weight in model.parameters()):
        return
    fingerprint = find_decoder_parts(causal_lm(model)).fingerprint()
    if fingerprint != lens.weights:
        log.warning(
            f"internal_lens was fitted to {lens.model} with weights {lens.weights}, and the model to train has other weights, or another "
            f"dtype ({fingerprint}): fit one to this model with `layerlens fit-lens`"
        )


def warn_of_differences(choice: LayerChoice, model: nn.Module, norm: str, lens: str = "logit") -> None:
    """Logs a warning if the layer is not usable, or was chosen on other weights than the model's, or under another norm or lens.

    Weights are compared by fingerprint (`DecoderParts.fingerprint`, which the dtype is part of), and only if the choice has
    one and the model's weights are those of its checkpoint: neither mixed with adapters nor spread out by DeepSpeed.
    """
    warn_of_skill(choice)
    if choice.norm != norm:
        log.warning(
            f"internal_layer was chosen with norm {choice.norm} and is trained with internal_norm {norm}: "
            f"choose again on a run with norm {norm}" + (f", or set internal_norm to {choice.norm}" if choice.norm in FORWARD_NORMS else "")
        )
    if choice.lens != lens:
        log.warning(f"internal_layer was chosen with the {choice.lens} lens and is trained with the {lens} lens: choose and train with one")
    if choice.fingerprint is None or hasattr(model, "peft_config") or any(hasattr(weight, "ds_id") for weight in model.parameters()):
        return
    parts = find_decoder_parts(causal_lm(model))
    fingerprint, dtype = parts.fingerprint(), str(parts.dtype).removeprefix("torch.")
    if fingerprint != choice.fingerprint:
        log.warning(
            f"internal_layer was chosen on {choice.model} with weights {choice.fingerprint} ({choice.run or 'a run in memory'}), and the "
            f"model to train has other weights, or another dtype ({fingerprint}, {dtype}): choose again on a run of this model"
        )


def warn_of_skill(choice: LayerChoice) -> None:
    """Logs a warning if the policy of the chosen layer is known to be no better than guessing."""
    if choice.is_usable is False:
        size = "" if choice.skill is None else f" ({nats(choice.skill)} a token over guessing)"
        usable = (
            f"usable are layers {layer_ranges(choice.usable)}" if choice.usable else "no layer is usable: train with internal_norm final"
        )
        log.warning(f"the policy of layer {choice.layer} under norm {choice.norm} is no better than guessing{size}; {usable}")


def choose_together(accelerator: Any, choose: Callable[[], LayerChoice]) -> LayerChoice:
    """The choice of the main process, on every process; all must call it.

    Raises on every process what `choose` raises, and TrainingError if the choice names no layer.
    """
    choice = on_main(accelerator, choose)
    if choice.layer is None:
        why = f"{choice.reason}{f'; {choice.diagnosis}' if choice.diagnosis else ''}"
        raise TrainingError(f"internal_layer='auto' found no layer to train: {why}. Name one, or choose another internal_rule")
    log.info(f"internal_layer='auto': {choice.reason}")
    if accelerator.is_main_process:
        warn_of_skill(choice)
    return choice


def choose_by_analysis(
    model: nn.Module,
    tokenizer: Any,
    prompts: Sequence[Sample],
    generation: Generation,
    norm: ForwardNorm,
    rule: Rule | None,
    device: torch.device,
) -> LayerChoice:
    """Analyses the model's own answers to the prompts, on `device`, and applies the rule. The model ends on the device it came from.

    Raises TrainingError if other processes wait for this one, and would not wait that long.
    """
    network = causal_lm(model)
    home = network.device  # FSDP leaves the model on the CPU until it is sharded
    try:
        lens = LensModel.wrap(network.to(device), tokenizer)
        seconds = sampling_seconds(lens, prompts, generation) + measuring_seconds(
            lens, prompts, generation, lens.n_layers * len(lens.sites)
        )
        require_in_time(
            "internal_layer auto",
            work_on(len(prompts), generation, samples=not all(prompt.has_response for prompt in prompts)),
            seconds,
            device,
            REMEDY,
        )
        run = analyze(lens, prompts, generate=generation, metrics=READOUT_METRICS, norm=norm)
    finally:
        network.to(home)
    return select_layer(run, rule)
