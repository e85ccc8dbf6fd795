"""A digest of a model's weights: two models with one different weight have different digests."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator

import torch
from torch import Tensor, nn

from layerlens.models.offload import offloaded_weight
from layerlens.models.quantised import inner_tensors, require_intact

WEIGHTS_PER_SUM = 256
"""Number of neighbouring weights whose bits a fingerprint adds up to one sum."""


def fingerprint(model: nn.Module) -> str:
    """A digest of all weights, 16 hexadecimal digits, wherever they lie; quantised weights count as they are stored.

    It covers names, shapes, dtypes, the exact integer sum of the bits of every 256 neighbouring weights, and evenly
    spaced single weights. Each weight is read once, on the device it lies on; one that accelerate keeps on disk is read from
    there. A weight that nobody keeps counts by name, shape and dtype. Collisions are those of a 64-bit sum. A model inside a
    TransformerBridge has the digest that it has outside.

    Raises ModelLoadError if reading the weights would damage the model.
    """
    require_intact(model)
    digest = hashlib.sha256()
    for name, weight in _weights(model):
        digest.update(f"{name} {tuple(weight.shape)} {weight.dtype}".encode())
        if weight.is_meta or weight.numel() == 0:
            continue
        flat = weight.detach().reshape(-1)
        bits = flat.view({1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}[flat.element_size()])
        for piece in bits.split(1 << 22):  # type: ignore[no-untyped-call]  # torch converts all of its argument to int64 before it sums
            groups = piece[: len(piece) // WEIGHTS_PER_SUM * WEIGHTS_PER_SUM].view(-1, WEIGHTS_PER_SUM)
            digest.update(groups.sum(1, dtype=torch.int64).cpu().numpy().tobytes())
            digest.update(str(int(piece[groups.numel() :].sum(dtype=torch.int64))).encode())
        digest.update(bits[:: max(1, len(bits) // 1024)].cpu().numpy().tobytes())
    return digest.hexdigest()[:16]


def _weights(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """The entries of the state dict by name; of a tensor of a quantisation library, the plain tensors that it is made of."""
    state = model.state_dict()
    for name, path in sorted(_own_names(state)):
        weight = state[path]
        if path.endswith(f"head.{BRIDGED}.bias") and not weight.any():
            continue  # TransformerLens gives a head without a bias one of zeros
        kept = offloaded_weight(model, path) if weight.is_meta else weight
        yield from inner_tensors(name, weight if kept is None else kept)


BRIDGED = "_original_component"
"""The name under which a module of TransformerLens' TransformerBridge keeps the model's own module."""


def _own_names(paths: Iterable[str]) -> Iterator[tuple[str, str]]:
    """Each weight's name in the model itself, and its path; a bridge also lists weights under names of its own, left out here."""
    parts = {path: path.split(".") for path in paths}
    bridged = {tuple(path[:at]) for path in parts.values() for at, part in enumerate(path) if part == BRIDGED}
    for name, path in parts.items():
        if all(path[at] == BRIDGED for at in range(len(path)) if tuple(path[:at]) in bridged):
            yield ".".join(part for part in path if part != BRIDGED), name
