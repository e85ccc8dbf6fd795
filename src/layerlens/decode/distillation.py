"""Jensen-Shannon divergence from a fixed policy to train on, streamed over the vocabulary in both directions.

With p the policy of the trained vectors, q the fixed one, m = (p + q) / 2, and x the logits of p:

    JS = [KL(p ‖ m) + KL(q ‖ m)] / 2,    dJS / dx = p (log(p / m) - KL(p ‖ m)) / 2,    log(p / m) = log 2 - log(1 + q / p)

Neither direction holds a tokens × vocabulary array: the backward pass computes the logits again, chunk by chunk.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn.functional import softplus

from layerlens.decode.autograd import BACKWARD_ELEMENTS, LogitGradients, float32_product, logit_slope
from layerlens.decode.choose import choose_backend
from layerlens.decode.request import ReadoutRequest, rows_at_once
from layerlens.decode.unembedding import Unembedding

LN2 = math.log(2)


def js_to_fixed(hidden: Float[Tensor, "n d"], unembedding: Unembedding, fixed: Float[Tensor, "n d"]) -> Float[Tensor, " n"]:
    """JS(π, π_fixed) of each vector's policy π and that of `fixed`, in bits (`js_divergence`), differentiable once with respect to π.

    Args:
        hidden: vectors as they are to be unembedded, any float dtype.
        unembedding: gradients reach its `weight` and `bias` through π alone, as well as `hidden`, if these require gradients.
        fixed: the vectors of the fixed policy, which gets no gradient.

    Returns:
        Divergences from 0 to 1, float32, whatever the dtypes of the inputs, and under autocast too. A NaN gives NaN, and no row none.
    """
    return _JSToFixed.apply(  # type: ignore[no-any-return, no-untyped-call]
        hidden, unembedding.weight, unembedding.bias, fixed.detach(), unembedding.scale, unembedding.softcap, unembedding.temperature
    )


class _JSToFixed(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        fixed: Tensor,
        scale: float,
        softcap: float | None,
        temperature: float,
    ) -> Tensor:
        ctx.dtypes, ctx.logit_arguments = (hidden.dtype, weight.dtype), (scale, softcap, temperature)
        device_type = hidden.device.type
        if torch.is_autocast_enabled(device_type):
            hidden, weight, fixed = (tensor.to(torch.get_autocast_dtype(device_type)) for tensor in (hidden, weight, fixed))
        with torch.autocast(device_type, enabled=False):
            unembedding = Unembedding(weight.detach(), None if bias is None else bias.detach(), scale, softcap, temperature)
            vectors = hidden.detach(), fixed
            normalisers = [_normaliser(each, unembedding) for each in vectors]
            own, other = (torch.zeros(len(hidden), dtype=torch.float64, device=hidden.device) for _ in vectors)
            for rows, *_, p, q in _log_policies(vectors, normalisers, unembedding):
                own[rows] += (p.exp() * _log_share(p, q)).sum(-1)
                other[rows] += (q.exp() * _log_share(q, p)).sum(-1)
        ctx.save_for_backward(hidden, weight, bias, fixed, *normalisers, own)
        return ((own + other) / (2 * LN2)).float()

    @staticmethod
    @once_differentiable  # the logits that it computes again have no history to differentiate through
    def backward(ctx: Any, gradient: Tensor) -> Any:
        hidden, weight, bias, fixed, *normalisers, own = ctx.saved_tensors
        unembedding = Unembedding(weight, bias, *ctx.logit_arguments)
        gradients = LogitGradients(hidden, unembedding, ctx.needs_input_grad[:3])
        wanted = (gradient != 0).nonzero()[:, 0]
        outer = (gradient.float() / (2 * LN2))[wanted, None]
        centre = own.float()[wanted, None]
        chosen = [each[wanted] for each in (hidden, fixed)]
        with torch.autocast(hidden.device.type, enabled=False):
            for rows, start, stop, x, p, q in _log_policies(chosen, [each[wanted] for each in normalisers], unembedding):
                g = outer[rows] * p.exp() * (_log_share(p, q) - centre[rows])
                g *= logit_slope(x, unembedding)
                gradients.add(wanted[rows], start, stop, g, chosen[0][rows])
        return *gradients.in_dtypes(*ctx.dtypes), *[None] * 4


def _normaliser(vectors: Float[Tensor, "n d"], unembedding: Unembedding) -> Float[Tensor, "n 2"]:
    """m and log S of each row's logits (`moments.py`), which are subtracted one after the other to keep the digits of large logits."""
    found = []
    for rows in torch.split(vectors, rows_at_once(unembedding, 1)) if len(vectors) else ():
        request = ReadoutRequest(unembedding, rows)
        own = choose_backend(request)(request).own
        m = own.m.double().reshape(-1, len(rows)).amax(0)
        found.append(torch.stack([m, own.log_partition - m], 1).float())
    return torch.cat(found) if found else vectors.new_zeros(0, 2, dtype=torch.float32)


def _log_policies(vectors: Any, normalisers: Any, unembedding: Unembedding) -> Iterator[tuple[slice, int, int, Tensor, Tensor, Tensor]]:
    """Yields rows, the first and last token of a chunk, the trained policy's logits there, and the log-probabilities of both policies."""
    hidden, fixed = vectors
    step = rows_at_once(unembedding, 2)
    limit = BACKWARD_ELEMENTS.get(hidden.device.type, BACKWARD_ELEMENTS["cpu"])
    chunk = max(64, limit // max(1, min(step, len(hidden))))
    for first in range(0, len(hidden), step):
        rows = slice(first, first + step)
        for start in range(0, len(unembedding.weight), chunk):
            stop = min(start + chunk, len(unembedding.weight))
            w = unembedding.weight[start:stop]
            x, y = (unembedding.product_to_logits_(float32_product(each[rows], w), start, stop) for each in (hidden, fixed))
            p, q = (each - norm[rows, :1] - norm[rows, 1:] for each, norm in zip((x, y), normalisers, strict=True))
            yield rows, start, stop, x, p, q


def _log_share(p: Tensor, q: Tensor) -> Tensor:
    """log(p / m), m = (p + q) / 2, from log-probabilities."""
    return LN2 - softplus(q - p)
