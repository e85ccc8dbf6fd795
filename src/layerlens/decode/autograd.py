"""Log-probabilities to train on: the readout, with a backward that computes logits again chunk by chunk.

Neither direction holds tokens × vocabulary. Gradients of log π(t) and of the entropy H with respect to the logits x are
1[t] - π and -π (log π + H).
"""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.autograd.function import once_differentiable

from layerlens.decode.choose import choose_backend, float32_product
from layerlens.decode.request import ReadoutRequest, rows_at_once
from layerlens.decode.unembedding import Unembedding

BACKWARD_ELEMENTS = {"cpu": 1 << 22, "cuda": 1 << 25}
"""Logits that the backward holds at a time, by device type."""


def token_log_probs(
    hidden: Float[Tensor, "n d"], logits: Unembedding, targets: Int[Tensor, " n"]
) -> tuple[Float[Tensor, " n"], Float[Tensor, " n"]]:
    """log π(target) and the entropy of softmax(logits) of each vector, nats, float32; both can be differentiated.

    Gradients reach `hidden`, `logits.weight` and `logits.bias` where these require them. Logits are float32 whatever the
    inputs are, under autocast as well. NaN stays NaN, so that a trainer sees it.
    """
    return _TokenLogProbs.apply(hidden, logits.weight, logits.bias, targets.long(), logits.scale, logits.softcap, logits.temperature)  # type: ignore[no-any-return, no-untyped-call]


class _TokenLogProbs(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        targets: Tensor,
        scale: float,
        softcap: float | None,
        temperature: float,
    ) -> tuple[Tensor, Tensor]:
        ctx.set_materialize_grads(False)
        kind = hidden.device.type
        ctx.dtypes = hidden.dtype, weight.dtype
        if torch.is_autocast_enabled(kind):
            hidden, weight = (tensor.to(torch.get_autocast_dtype(kind)) for tensor in (hidden, weight))
        with torch.autocast(kind, enabled=False):
            logits = Unembedding(weight.detach(), None if bias is None else bias.detach(), scale, softcap, temperature)
            step = rows_at_once(logits, 1)
            logps, entropies, partitions = [], [], []
            for rows, aim in zip(torch.split(hidden.detach(), step), torch.split(targets, step), strict=True):
                request = ReadoutRequest(logits, rows, targets=aim)
                sums = choose_backend(request)(request)
                assert sums.target is not None
                partitions.append(sums.own.log_partition.float())
                logps.append((sums.target.double() - sums.own.log_partition).float())
                entropies.append(sums.own.entropy.float())
        log_z, entropy = torch.cat(partitions), torch.cat(entropies)
        ctx.save_for_backward(hidden, weight, bias, targets, log_z, entropy)
        ctx.how = scale, softcap, temperature
        return torch.cat(logps), entropy

    @staticmethod
    @once_differentiable  # logits are made again without their history
    def backward(ctx: Any, d_logp: Tensor | None, d_entropy: Tensor | None) -> Any:
        hidden, weight, bias, targets, log_z, entropy = ctx.saved_tensors
        scale, softcap, temperature = ctx.how
        logits = Unembedding(weight, bias, scale, softcap, temperature)
        to_hidden, to_weight, to_bias = ctx.needs_input_grad[:3]
        d_hidden = torch.zeros_like(hidden, dtype=torch.float32) if to_hidden else None
        d_weight = torch.zeros_like(weight, dtype=torch.float32) if to_weight else None
        d_bias = torch.zeros_like(bias, dtype=torch.float32) if to_bias else None
        # padding and prompts are scored, and their loss is masked: nothing flows back from there
        moved = torch.zeros_like(log_z, dtype=torch.bool)
        for gradient in (d_logp, d_entropy):
            moved |= gradient != 0 if gradient is not None else False
        rows = moved.nonzero()[:, 0]
        size = rows_at_once(logits, 1)
        chunk = max(64, BACKWARD_ELEMENTS.get(hidden.device.type, BACKWARD_ELEMENTS["cpu"]) // max(1, min(size, len(rows))))
        with torch.autocast(hidden.device.type, enabled=False):
            for part in torch.split(rows, size):
                h, aim, z = hidden[part], targets[part], log_z[part, None]
                for start in range(0, len(weight), chunk):
                    w = weight[start : start + chunk]
                    stop = start + len(w)
                    x = logits.finish_(float32_product(h, w), start, stop)
                    slope = _slope(x, logits)
                    p = (x - z).exp()
                    g = torch.zeros_like(x)
                    if d_logp is not None:
                        g -= d_logp[part, None] * p
                        here = ((aim >= start) & (aim < stop)).nonzero()[:, 0]
                        g[here, aim[here] - start] += d_logp[part[here]]
                    if d_entropy is not None:
                        g -= d_entropy[part, None] * p * (x - z + entropy[part, None])
                    g *= slope
                    if d_bias is not None:
                        d_bias[start:stop] += g.sum(0)
                    g *= scale
                    if d_hidden is not None:
                        d_hidden[part] += g.to(w.dtype) @ w
                    if d_weight is not None:
                        d_weight[start:stop] += g.to(h.dtype).t() @ h
        return (
            None if d_hidden is None else d_hidden.to(ctx.dtypes[0]),
            None if d_weight is None else d_weight.to(ctx.dtypes[1]),
            None if d_bias is None else d_bias.to(bias.dtype),
            *[None] * 4,
        )


def _slope(x: Float[Tensor, "n chunk"], logits: Unembedding) -> Tensor | float:
    """d logits / d (scale · product + bias)."""
    if logits.softcap is None:
        return 1 / logits.temperature
    return (1 - (x * logits.temperature / logits.softcap) ** 2) / logits.temperature
