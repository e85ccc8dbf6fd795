"""Layer-wise learning rates and freezing: training that treats layers differently without an internal policy."""

from __future__ import annotations

import re
from typing import Any

from layerlens.errors import TrainingError
from layerlens.models import causal_lm, count_blocks, decoder_of

Factors = dict[int, float]


def parse_factors(text: str) -> list[tuple[int, int, float]]:
    """From "1-6:1.0,7:0.1": first layer, last layer and factor of each part. Raises TrainingError on anything else."""
    found = []
    for part in text.split(","):
        match = re.fullmatch(r"\s*(\d+)(?:-(\d+))?\s*:\s*(\d*\.?\d+(?:[eE][+-]?\d+)?)\s*", part)
        if match is None:
            raise TrainingError(f"layer_lr_factors is like 1-6:1.0,7-36:0.1, factors of 0 or more, got {part!r}")
        found.append((int(match[1]), int(match[2] or match[1]), float(match[3])))
    return found


def layer_factors(n_layers: int, factors: str | None, decay: float | None, above: int | None) -> Factors:
    """The learning-rate factor of every layer 1...L. Raises TrainingError on layers that are not there."""
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
    """The layer that a parameter belongs to, from its name; None outside the blocks."""
    match = re.search(rf"(?:^|\.){re.escape(blocks_path)}\.(\d+)\.", name)
    return int(match[1]) + 1 if match else None


def blocks_path(model: Any) -> str:
    """What comes before a block's number in parameter names."""
    _, layout = decoder_of(model)
    return f"{layout.decoder}.{layout.blocks}"


def freeze_up_to(model: Any, layer: int) -> None:
    """Takes gradients off blocks 1...layer and the embedding (kept where it is tied to the unembedding)."""
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


def scaled_groups(groups: list[dict[str, Any]], names: dict[int, str], path: str, factors: Factors, lr: float) -> list[dict[str, Any]]:
    """Optimizer groups cut by learning-rate factor, each with `lr` and a `layer_lr_factor`; weight decay as it was."""
    out: list[dict[str, Any]] = []
    for group in groups:
        by_factor: dict[float, list[Any]] = {}
        for weight in group["params"]:
            layer = layer_of(names.get(id(weight), ""), path)
            by_factor.setdefault(1.0 if layer is None else factors[layer], []).append(weight)
        rest = {key: value for key, value in group.items() if key != "params"}
        out += [{**rest, "params": params, "lr": lr * factor, "layer_lr_factor": factor} for factor, params in sorted(by_factor.items())]
    return out


def describe(factors: Factors, frozen: int) -> list[tuple[str, str]]:
    """Runs of layers and what happens to them, for the table shown at start."""
    rows: list[tuple[str, str]] = []
    start = 1
    for layer in range(1, len(factors) + 1):
        what = "frozen" if layer <= frozen else f"learning rate x {factors[layer]:g}"
        following = None if layer == len(factors) else ("frozen" if layer + 1 <= frozen else f"learning rate x {factors[layer + 1]:g}")
        if following != what:
            rows.append((f"layers {start}-{layer}" if layer > start else f"layer {layer}", what))
            start = layer + 1
    return rows
