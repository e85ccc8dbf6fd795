"""A digest of a model's weights: two models with one different weight have different digests."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator

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
    there. A weight that nobody keeps counts by name, shape and dtype. Collisions are those of a 64-bit sum.

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
    for name, weight in sorted(model.state_dict().items()):
        kept = offloaded_weight(model, name) if weight.is_meta else weight
        yield from inner_tensors(name, weight if kept is None else kept)
