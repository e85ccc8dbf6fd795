"""Learning rates and weight decay by layer."""

from __future__ import annotations

import re
from collections.abc import Collection
from itertools import groupby
from typing import Any

import torch
from transformers import TrainerCallback

from layerlens.errors import TrainingError
from layerlens.models import decoder_of

Factors = dict[int, float]
"""Layer, from 1 -> factor of the learning rate."""


def parse_factors(text: str) -> list[tuple[int, int, float]]:
    """Reads "1-6:1.0,7:0.1": first layer, last layer and factor of each part. Raises TrainingError for anything else."""
    found = []
    for part in text.split(","):
        match = re.fullmatch(r"\s*(\d+)(?:-(\d+))?\s*:\s*(\d*\.?\d+(?:[eE][+-]?\d+)?)\s*", part)
        if match is None:
            raise TrainingError(f"layer_lr_factors is like 1-6:1.0,7-36:0.1, factors of 0 or more, got {part!r}")
        found.append((int(match[1]), int(match[2] or match[1]), float(match[3])))
    return found


def layer_factors(n_layers: int, factors: str | None, decay: float | None, above: int | None) -> Factors:
    """The learning-rate factor of every layer 1...L.

    Args:
        factors: text for `parse_factors`; a layer that it does not name has 1.
        decay, above: one factor for all layers above the layer `above`.

    Raises TrainingError if a layer is outside 1...L, and if no layer is above `above`.
    """
    out = dict.fromkeys(range(1, n_layers + 1), 1.0)
    if decay is not None and above is not None:
        if not 1 <= above < n_layers:
            raise TrainingError(f"layer_lr_decay acts above a layer in 1..{n_layers - 1}, got layer {above} of {n_layers}")
        out |= {layer: decay for layer in out if layer > above}
    for first, last, factor in parse_factors(factors) if factors else []:
        if not 1 <= first <= last <= n_layers:
            raise TrainingError(f"layer_lr_factors: layers {first}-{last} are not in 1..{n_layers}")
        out |= dict.fromkeys(range(first, last + 1), factor)
    return out


def layer_of(name: str, blocks_path: str) -> int | None:
    """The layer of a parameter, read from the parameter's name; None for a parameter outside the blocks."""
    match = re.search(rf"(?:^|\.){re.escape(blocks_path)}\.(\d+)\.", name)
    return int(match[1]) + 1 if match else None


def blocks_path(model: Any) -> str:
    """The part of a block's parameter names in front of the block's number, such as "model.layers"."""
    path, _, layout = decoder_of(model)
    return f"{path}.{layout.blocks}"


def is_scaled(groups: list[dict[str, Any]]) -> bool:
    """Whether optimizer groups are what `scaled_groups` returns."""
    return any("layer_lr_factor" in group for group in groups)


def scaled_groups(groups: list[dict[str, Any]], names: dict[int, str], path: str, factors: Factors) -> list[dict[str, Any]]:
    """Splits optimizer groups by the factor of their own learning rate, so that each has one rate; all other settings stay the group's.

    Args:
        groups: the optimizer's parameter groups.
        names: the name of each parameter, by the parameter's `id`.
        path: `blocks_path` of the model.
        factors: the factor of each layer; parameters outside the blocks have 1.

    Returns:
        groups with `lr` as multiplied, and the factor under `layer_lr_factor`; first what has 1, the rate that transformers logs.
    """
    out: list[dict[str, Any]] = []
    for group in groups:
        by_factor: dict[float, list[Any]] = {}
        for weight in group["params"]:
            layer = layer_of(names.get(id(weight), ""), path)
            by_factor.setdefault(1.0 if layer is None else factors[layer], []).append(weight)
        rest = {key: value for key, value in group.items() if key != "params"}
        factors_in_order = sorted(by_factor, key=lambda factor: (factor != 1, factor))
        out += [{**rest, "params": by_factor[factor], "lr": group["lr"] * factor, "layer_lr_factor": factor} for factor in factors_in_order]
    return out


def describe_rates(factors: Factors, frozen: Collection[int]) -> list[tuple[str, str]]:
    """Layers next to each other that are treated alike, and how, as rows of two texts for the table at start."""
    rows: list[tuple[str, str]] = []
    treated = {layer: "frozen" if layer in frozen else f"learning rate x {factor:g}" for layer, factor in factors.items()}
    for what, group in groupby(treated, key=treated.__getitem__):
        members = list(group)
        rows.append((f"layers {members[0]}-{members[-1]}" if len(members) > 1 else f"layer {members[0]}", what))
    return rows


class DecayWithoutGradient(TrainerCallback):  # type: ignore[misc]
    """Gives every weight without a gradient a gradient of zeros before each optimizer step, so that weight decay acts on it too."""

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        for weight in model.parameters():
            if weight.requires_grad and weight.grad is None:
                weight.grad = torch.zeros_like(weight)
