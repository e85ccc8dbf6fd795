"""The float32 matrix products of a CPU that can fill a chunk."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor


def mm(hidden: Float[Tensor, "n d"], weight: Float[Tensor, "chunk d"], out: Float[Tensor, "n chunk"]) -> None:
    """torch's own: MKL, OpenBLAS or Accelerate on a CPU, as torch was built."""
    torch.mm(hidden, weight.t(), out=out)


def onednn(hidden: Float[Tensor, "n d"], weight: Float[Tensor, "chunk d"], out: Float[Tensor, "n chunk"]) -> None:
    """oneDNN's inner product, where torch has it: on some processors more than twice as fast as MKL."""
    out.copy_(torch.ops.mkldnn._linear_pointwise(hidden, weight, None, "none", [], ""))


def has_onednn() -> bool:
    """Whether this torch has oneDNN's product."""
    return hasattr(torch.ops.mkldnn, "_linear_pointwise")
