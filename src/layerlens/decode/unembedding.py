"""How a model turns a vector into logits, and what is asked of them."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor


@dataclass(frozen=True)
class Unembedding:
    """How a model turns a vector into logits: cap(scale · weight · h + bias) / temperature."""

    weight: Float[Tensor, "vocabulary d"]
    bias: Float[Tensor, " vocabulary"] | None = None
    scale: float = 1.0
    softcap: float | None = None
    temperature: float = 1.0

    @property
    def plain(self) -> bool:
        """Whether logits are the product alone."""
        return self.bias is None and self.softcap is None and self.scale == self.temperature == 1.0

    def logits(self, hidden: Float[Tensor, "*rows d"]) -> Float[Tensor, "*rows vocabulary"]:
        """All logits, float32: for a few rows, to sample from."""
        return self.finish_(hidden.to(self.weight.device, torch.float32) @ self.weight.float().T, 0, self.weight.shape[0])

    def finish_(self, product: Float[Tensor, "*rows chunk"], start: int, stop: int) -> Float[Tensor, "*rows chunk"]:
        """Makes logits, in place, of the float32 product with the weights of tokens start...stop-1."""
        if self.scale != 1.0:
            product *= self.scale
        if self.bias is not None:
            product += self.bias[start:stop].float()
        if self.softcap is not None:
            product.div_(self.softcap).tanh_().mul_(self.softcap)
        if self.temperature != 1.0:
            product /= self.temperature
        return product
