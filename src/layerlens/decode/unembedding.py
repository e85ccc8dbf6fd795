"""How a model turns hidden vectors into logits."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor


@dataclass(frozen=True)
class Unembedding:
    """The map from a hidden vector h to logits: softcap · tanh((scale · weight · h + bias) / softcap) / temperature.

    Without `softcap` the logits are (scale · weight · h + bias) / temperature.
    """

    weight: Float[Tensor, "vocabulary d"]
    bias: Float[Tensor, " vocabulary"] | None = None
    scale: float = 1.0
    softcap: float | None = None
    temperature: float = 1.0

    @property
    def is_bare_product(self) -> bool:
        """Whether the logits are weight · h and nothing else."""
        return self.bias is None and self.softcap is None and self.scale == self.temperature == 1.0

    def logits(self, hidden: Float[Tensor, "*rows d"]) -> Float[Tensor, "*rows vocabulary"]:
        """The logits of all tokens, float32. They are held whole, so this is for a few rows, for example to sample from."""
        return self.product_to_logits_(hidden.to(self.weight.device, torch.float32) @ self.weight.float().T, 0, self.weight.shape[0])

    def token_logits(self, hidden: Float[Tensor, "rows d"], tokens: Int[Tensor, " rows"]) -> Float[Tensor, " rows"]:
        """The logit of one token for each vector, float64, without a pass over the vocabulary. A negative id gives that of token 0."""
        ids = tokens.clamp_min(0)
        product = (hidden.double() * self.weight[ids].double()).sum(-1)
        return self._product_to_logits_(product, None if self.bias is None else self.bias[ids])

    def product_to_logits_(self, product: Float[Tensor, "*rows chunk"], start: int, stop: int) -> Float[Tensor, "*rows chunk"]:
        """Turns the float32 product of vectors and the weights of tokens start…stop-1 into the logits of these tokens, in place."""
        return self._product_to_logits_(product, None if self.bias is None else self.bias[start:stop])

    def _product_to_logits_(
        self, product: Float[Tensor, "*rows chunk"], bias: Float[Tensor, " chunk"] | None
    ) -> Float[Tensor, "*rows chunk"]:
        if self.scale != 1.0:
            product *= self.scale
        if bias is not None:
            product += bias.float()
        if self.softcap is not None:
            product.div_(self.softcap).tanh_().mul_(self.softcap)
        if self.temperature != 1.0:
            product /= self.temperature
        return product
