"""The float32 matrix products of the torch backend; each writes the logits of a chunk to `out`."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor


def mm(hidden: Float[Tensor, "n d"], weight: Float[Tensor, "chunk d"], out: Float[Tensor, "n chunk"]) -> None:
    """The product of the library that torch was built with: on a CPU MKL, OpenBLAS or Accelerate."""
    torch.mm(hidden, weight.t(), out=out)


def onednn(hidden: Float[Tensor, "n d"], weight: Float[Tensor, "chunk d"], out: Float[Tensor, "n chunk"]) -> None:
    """oneDNN's inner product, which on some processors is more than twice as fast as MKL's."""
    out.copy_(torch.ops.mkldnn._linear_pointwise(hidden, weight, None, "none", [], ""))


def has_onednn() -> bool:
    """Whether this torch was built with oneDNN's inner product."""
    return hasattr(torch.ops.mkldnn, "_linear_pointwise")
