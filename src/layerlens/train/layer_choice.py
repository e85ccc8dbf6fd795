"""The layer of the internal phase: read from a file of `layerlens select --json`, chosen by "auto", and held to the model's depth."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from accelerate.utils import broadcast_object_list
from torch import nn
from transformers import AutoConfig

from layerlens.analysis.pipeline import analyze
from layerlens.errors import ModelLoadError, SelectionError, TrainingError
from layerlens.models import Generation, LensModel, causal_lm, count_blocks, find_decoder_parts, layout_for
from layerlens.prompts.sample import Sample
from layerlens.selection.layer import LayerChoice, select_layer
from layerlens.types import Norm, Rule

if TYPE_CHECKING:
    from layerlens.train.config import BuPOConfig

log = logging.getLogger("layerlens.train")

WRITE_ONE = "write one with `layerlens select RUN --json`"


def read_choice(path: str) -> LayerChoice:
    """The choice in a file that `layerlens select RUN --json` has written.

    Raises TrainingError if there is no such file, if it is damaged, if it holds the choices of several runs, and if its
    choice names no layer.
    """
    file = Path(path).expanduser()
    if not file.is_file():
        raise TrainingError(f"internal_layer is a layer from 1, auto, none, or a file of `layerlens select --json`; {path!r} is no file")
    try:
        found = _json_values(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise TrainingError(f"{file} cannot be read as a choice of layer ({error}): {WRITE_ONE}") from error
    runs = [choice for value in found for choice in _choices(value)]
    if len(runs) > 1:
        raise TrainingError(f"{file} holds the choices of {len(runs)} runs, and training needs that of one: {WRITE_ONE}")
    try:
        choice = LayerChoice.from_dict(runs[0] if runs and isinstance(runs[0], dict) else {})
    except SelectionError as error:
        raise TrainingError(f"{file} is damaged ({error}): {WRITE_ONE}") from error
    if choice.layer is None:
        raise TrainingError(f"{file} names no layer to train ({choice.reason}): give a layer, or choose by another --rule")
    return choice


def _json_values(text: str) -> list[Any]:
    """The JSON values that stand in a text one after the other. Raises ValueError if there is anything else in it."""
    values, decoder = [], json.JSONDecoder()
    while text := text.strip():
        value, end = decoder.raw_decode(text)
        values.append(value)
        text = text[end:]
    return values


def _choices(value: Any) -> list[Any]:
    """The choices in a JSON value: itself, or the members of a list, or of an object that has one for each model."""
    members = list(value.values()) if isinstance(value, dict) else value
    several = isinstance(members, list) and all(isinstance(member, dict) for member in members)
    return members if several else [value]


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
    for who, layer in asked:
        if layer > n_layers:
            raise TrainingError(f"the model has {n_layers} layers; {who} asks for layer {layer}")
    return n_layers


def _depth_of(name: str, options: Mapping[str, Any]) -> int:
    try:
        config = AutoConfig.from_pretrained(name, **{key: options[key] for key in ("revision", "trust_remote_code") if key in options})
    except (OSError, ValueError) as error:
        raise ModelLoadError(f"{name}: its configuration could not be read ({' '.join(str(error).split())[:300]})") from error
    layout_for(config)
    return int(config.num_hidden_layers)


def warn_of_differences(choice: LayerChoice, model: nn.Module, norm: str) -> None:
    """Logs a warning if the layer was chosen on other weights than the model's, or under another norm than `norm`.

    Weights are compared by fingerprint (`DecoderParts.fingerprint`, which the dtype is part of), and only if the choice has
    one and the model's weights are those of its checkpoint: neither mixed with adapters nor spread out by DeepSpeed.
    """
    if choice.norm != norm:
        log.warning(
            f"internal_layer was chosen with norm {choice.norm} and is trained with internal_norm {norm}: "
            f"choose again on a run with norm {norm}, or set internal_norm to {choice.norm}"
        )
    if choice.fingerprint is None or hasattr(model, "peft_config") or any(hasattr(weight, "ds_id") for weight in model.parameters()):
        return
    parts = find_decoder_parts(causal_lm(model))
    fingerprint, dtype = parts.fingerprint(), str(parts.dtype).removeprefix("torch.")
    if fingerprint != choice.fingerprint:
        log.warning(
            f"internal_layer was chosen on {choice.model} with weights {choice.fingerprint} ({choice.run or 'a run in memory'}), and the "
            f"model to train has other weights, or another dtype ({fingerprint}, {dtype}): choose again on a run of this model"
        )


def choose_together(accelerator: Any, choose: Callable[[], LayerChoice]) -> LayerChoice:
    """The choice of the main process, on every process; all must call it.

    Raises on every process what `choose` raises, and TrainingError if the choice names no layer.
    """
    found: list[Any] = [None]
    if accelerator.is_main_process:
        try:
            found = [choose()]
        except Exception as error:  # every process must hear of it, not only this one
            found = [error]
    broadcast_object_list(found)
    choice = found[0]
    if isinstance(choice, Exception):
        raise choice
    if choice.layer is None:
        raise TrainingError(f"internal_layer='auto' found no layer to train: {choice.reason}. Name one, or choose another internal_rule")
    log.info(f"internal_layer='auto': {choice.reason}")
    return choice  # type: ignore[no-any-return]


def choose_by_analysis(
    model: nn.Module, tokenizer: Any, prompts: Sequence[Sample], generation: Generation, norm: Norm, rule: Rule, device: torch.device
) -> LayerChoice:
    """Analyses the model's own answers to the prompts, on `device`, and applies the rule. The model ends on the device it came from."""
    network = causal_lm(model)
    home = network.device  # FSDP leaves the model on the CPU until it is sharded
    try:
        lens = LensModel.wrap(network.to(device), tokenizer)
        run = analyze(lens, prompts, generate=generation, metrics=("entropy", "agrees"), norm=norm)
    finally:
        network.to(home)
    return select_layer(run, rule)
