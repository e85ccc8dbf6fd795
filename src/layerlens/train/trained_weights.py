"""Which weights learn: layers that are frozen, or that alone are trained; and in which dtype."""

from __future__ import annotations

import logging
import re
from collections.abc import Collection, Sequence
from typing import Any

import torch

from layerlens.errors import TrainingError
from layerlens.models import causal_lm, count_blocks, decoder_of
from layerlens.models.layout import submodule_at
from layerlens.train.layer_rates import blocks_path, layer_of

log = logging.getLogger("layerlens.train")

ALL = "all"
"""As the layers to train: every weight of the model, as GRPO does."""


def parse_layers(value: int | str | Sequence[int]) -> tuple[int, ...] | None:
    """The layers of "7", "1-3,7", 7 or [1, 2, 3, 7], in order and each once; None for "all". Raises TrainingError for anything else."""
    text = str(value) if isinstance(value, int | str) else ",".join(map(str, value))
    if text.strip() == ALL:
        return None
    found: set[int] = set()
    for part in text.split(","):
        match = re.fullmatch(r"\s*(\d+)(?:\s*-\s*(\d+))?\s*", part)
        first, last = (int(match[1]), int(match[2] or match[1])) if match else (0, 0)
        if not 1 <= first <= last:
            raise TrainingError(f"layers are like 7 or 1-3,7, counted from 1, or all; got {text!r}")
        found |= set(range(first, last + 1))
    return tuple(sorted(found))


def layers_text(layers: Sequence[int]) -> str:
    """Layers as `parse_layers` reads them, neighbours as a range: "1-3,7"."""
    starts = [layer for layer in layers if layer - 1 not in layers]
    ends = [layer for layer in layers if layer + 1 not in layers]
    return ",".join(f"{first}-{last}" if last > first else f"{first}" for first, last in zip(starts, ends, strict=True))


def train_alone(model: Any, layers: Collection[int]) -> None:
    """Freezes every weight outside these blocks: the other blocks, embedding, final norm and unembedding.

    In "Is One Layer Enough?" (arXiv 2607.01232) one block is trained in this way. Raises TrainingError if none of the blocks
    has a weight that is trained, as with adapters on other blocks.
    """
    path, left = blocks_path(model), False
    for name, weight in model.named_parameters():
        if layer_of(name, path) in layers:
            left |= weight.requires_grad
        else:
            weight.requires_grad_(False)
    if not left:
        raise TrainingError(f"train_layers: no weight of layer {layers_text(sorted(layers))} is trained: give adapters to these blocks")


def freeze_up_to(model: Any, layer: int) -> None:
    """Freezes blocks 1...layer, and the embedding unless it is tied to the unembedding; 0 freezes nothing.

    Raises TrainingError if no block would be left to train.
    """
    if layer == 0:
        return
    n_layers = count_blocks(model)
    if not 1 <= layer < n_layers:
        raise TrainingError(f"freeze_layers must be in 0..{n_layers - 1}, got {layer}")
    path, network = blocks_path(model), causal_lm(model)
    for name, weight in network.named_parameters():
        number = layer_of(name, path)
        if number is not None and number <= layer:
            weight.requires_grad_(False)
    embedding, head = network.get_input_embeddings().weight, network.get_output_embeddings().weight
    if embedding is not head:
        embedding.requires_grad_(False)


def require_trainable(model: Any, layer: int, norm: str) -> None:
    """Raises TrainingError if no weight of layer `layer`'s policy is trained, as with adapters on the blocks above it alone."""
    _, decoder, layout = decoder_of(model)
    final_norm = {id(weight) for weight in submodule_at(decoder, layout.final_norm, "the final norm").parameters()}
    path = blocks_path(model)
    for name, weight in causal_lm(model).named_parameters():
        takes_part = (layer_of(name, path) or 1) <= layer and (norm == "final" or id(weight) not in final_norm)
        if weight.requires_grad and takes_part:
            return
    raise TrainingError(f"no weight of layer {layer}'s policy is trained: give adapters to blocks 1 to {layer}, or train a higher layer")


def warn_of_rounding(model: Any, learning_rate: float) -> None:
    """Logs a warning if weights of 16 bits are trained themselves, as they are without adapters and without copies in float32."""
    trained = {weight.dtype for weight in model.parameters() if weight.requires_grad and weight.dtype.itemsize == 2}
    if hasattr(model, "peft_config") or not trained:
        return
    coarsest = max(trained, key=lambda dtype: torch.finfo(dtype).eps)
    log.warning(
        f"weights are trained in {str(coarsest).removeprefix('torch.')}, which rounds a step away that changes a weight by less than "
        f"{torch.finfo(coarsest).eps / 4:.1g} of its size; at learning_rate {learning_rate:g} that may be most steps: load the weights in "
        "float32 (--dtype float32), or train adapters (--lora_rank)"
    )
