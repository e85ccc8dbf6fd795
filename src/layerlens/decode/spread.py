"""The spread of a state's logits over the vocabulary, without a pass over the vocabulary."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from layerlens.decode.cpu import products
from layerlens.decode.gpu.product import float32_product
from layerlens.decode.unembedding import Unembedding

CHUNK_ROWS = 1024
"""Rows of the unembedding whose products are summed in float32, before they are added up in float64."""


@dataclass(frozen=True)
class LogitSpread:
    """The standard deviation of a vector's logits over the vocabulary, sd(h) = √(hᵀ C h).

    C is the covariance of the rows of scale · weight (the rows count alike, divided by V), so sd(h)² is exactly the variance of the V
    numbers scale · weight · h. A bias adds the same to the logits of every state and a soft cap bounds them afterwards: neither is
    part of the spread, nor is the temperature.

    Make one with `LogitSpread.of`.

    Attributes:
        factor: R with RᵀR = C, float32, so that sd(h) = ‖R h‖ has no cancellation.
    """

    factor: Float[Tensor, "d d"]

    @classmethod
    @torch.no_grad()
    def of(cls, unembedding: Unembedding) -> LogitSpread:
        """The spread under an unembedding, on its device. C is accumulated in float64; V·d² multiplications, once per model."""
        weight = unembedding.weight
        chunks = torch.split(weight, CHUNK_ROWS)
        mean = torch.stack([rows.sum(0, dtype=torch.float64) for rows in chunks]).sum(0) / len(weight)
        covariance = torch.zeros(len(mean), len(mean), dtype=torch.float64, device=weight.device)
        for rows in chunks:
            centred = (rows.double() - mean).float().T.contiguous()
            covariance += float32_product(centred, centred)
        values, vectors = torch.linalg.eigh(covariance * (unembedding.scale**2 / len(weight)))
        return cls((values.clamp_min(0).sqrt()[:, None] * vectors.T).float())

    def sd(self, states: Float[Tensor, "*rows d"]) -> Float[Tensor, "*rows"]:
        """sd(h) of each vector as it is to be unembedded, in logits, float32."""
        flat = states.reshape(-1, states.shape[-1]).to(self.factor.device)
        if flat.device.type == "cpu" and products.has_onednn():
            products.onednn(flat.float(), self.factor, product := torch.empty(flat.shape))
        else:
            product = float32_product(flat, self.factor)
        length: Tensor = torch.linalg.vector_norm(product, dim=-1)
        return length.reshape(states.shape[:-1])

    def matched(self, states: Float[Tensor, "*rows d"], spread: float) -> Float[Tensor, "*rows d"]:
        """N(h) = spread · h / sd(h) of norm "matched", float32: every state's logits then have this spread. A state of 0 stays 0."""
        factor = spread / self.sd(states).clamp_min(torch.finfo(torch.float32).tiny)
        return states.float() * factor[..., None].to(states.device)
