"""How alike the layers of one text are: mean cosines and CKA of the residual stream, from states that are held."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor

from layerlens.metrics import CKA_TOKENS, cosine_sums, debiased_cka

BLOCK_BYTES = 64 << 20
"""Bytes of states of all layers that are made float32 at a time."""


def layer_similarity(
    states: Sequence[Float[Tensor, "held d"]], rows: Int[Tensor, " rows"], device: torch.device
) -> dict[str, Float[Tensor, "1 layers layers"]]:
    """Cosine similarity and CKA of a text between layers, float32, on `device`, so that the host need not wait for each text.

    Args:
        states: the states of each layer, in any dtype.
        rows: which of them are the text's.
        device: where to compute.
    """

    def of(numbers: Int[Tensor, " some"]) -> Float[Tensor, "layers some d"]:
        numbers = numbers.to(states[0].device)
        return torch.stack([layer.index_select(0, numbers).to(device, torch.float32) for layer in states])

    n = len(rows)
    block = max(1, BLOCK_BYTES // (4 * len(states) * states[0].shape[1]))
    cosines = torch.stack([cosine_sums(of(some)) for some in torch.split(rows, block)]).sum(0) / n
    picked = rows[torch.linspace(0, n - 1, min(CKA_TOKENS, n)).round().long()]
    return {name: matrix.float()[None] for name, matrix in (("similarity", cosines), ("cka", debiased_cka(of(picked))))}
