"""Random logits, and the sums over them from which entropy, log-probability and divergence are made."""

from __future__ import annotations

import torch
from torch import Tensor

LOGITS = torch.randn(2, 5, 300, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * torch.tensor([1.0, 30.0])[:, None, None]
"""Two sets of five policies over 300 tokens: one spread out, one nearly certain."""


def softmax_sums(logits: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """m, S and A of each row (decode/moments.py)."""
    m = logits.amax(-1)
    shifted = logits - m[..., None]
    return m, shifted.exp().sum(-1), (shifted.exp() * shifted).sum(-1)
