"""Log-probabilities to train on: the readout, with a backward pass that computes the logits again chunk by chunk.

Neither direction holds a tokens × vocabulary array. With respect to the logits x, the gradient of log π(t) is 1[t] - π, and that of the
entropy H = -Σ π log π is -π (log π + H).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.autograd.function import once_differentiable

from layerlens.decode.choose import choose_backend
from layerlens.decode.gpu import product as gpu_product
from layerlens.decode.request import ReadoutRequest, rows_at_once
from layerlens.decode.unembedding import Unembedding
from layerlens.metrics.log_probability import log_probability

BACKWARD_ELEMENTS = {"cpu": 1 << 22, "cuda": 1 << 25}
"""Logits that the backward pass holds at a time, by device type."""


def token_log_probs(
    hidden: Float[Tensor, "n d"], unembedding: Unembedding, targets: Int[Tensor, " n"]
) -> tuple[Float[Tensor, " n"], Float[Tensor, " n"]]:
    """log π(target) and the entropy of each vector's policy π, both differentiable once.

    Args:
        hidden: vectors as they are to be unembedded, any float dtype.
        unembedding: gradients reach its `weight` and `bias`, as well as `hidden`, if these require gradients.
        targets: a token id per vector, not negative.

    Returns:
        Log-probabilities and entropies in nats, float32. The logits are float32 whatever the dtypes of the inputs, and under autocast
        too. A NaN in `hidden` gives NaN, so that a trainer sees it.
    """
    return _TokenLogProbs.apply(  # type: ignore[no-any-return, no-untyped-call]
        hidden, unembedding.weight, unembedding.bias, targets.long(), unembedding.scale, unembedding.softcap, unembedding.temperature
    )


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
        device_type = hidden.device.type
        ctx.dtypes = hidden.dtype, weight.dtype
        if torch.is_autocast_enabled(device_type):
            hidden, weight = (tensor.to(torch.get_autocast_dtype(device_type)) for tensor in (hidden, weight))
        with torch.autocast(device_type, enabled=False):
            unembedding = Unembedding(weight.detach(), None if bias is None else bias.detach(), scale, softcap, temperature)
            step = rows_at_once(unembedding, 1)
            log_probs, entropies, log_partitions = [], [], []
            for rows, tokens in zip(torch.split(hidden.detach(), step), torch.split(targets, step), strict=True):
                request = ReadoutRequest(unembedding, rows, targets=tokens)
                sums = choose_backend(request)(request)
                assert sums.target_logit is not None
                log_partitions.append(sums.own.log_partition.float())
                log_probs.append(log_probability(sums.target_logit, sums.own.log_partition).float())
                entropies.append(sums.own.entropy.float())
        log_partition, entropy = torch.cat(log_partitions), torch.cat(entropies)
        ctx.save_for_backward(hidden, weight, bias, targets, log_partition, entropy)
        ctx.logit_arguments = scale, softcap, temperature
        return torch.cat(log_probs), entropy

    @staticmethod
    @once_differentiable  # the logits that it computes again have no history to differentiate through
    def backward(ctx: Any, grad_log_prob: Tensor | None, grad_entropy: Tensor | None) -> Any:
        hidden, weight, bias, targets, log_partition, entropy = ctx.saved_tensors
        unembedding = Unembedding(weight, bias, *ctx.logit_arguments)
        gradients = LogitGradients(hidden, unembedding, ctx.needs_input_grad[:3])
        # a trainer scores padding and prompts as well and masks their loss: rows without a gradient are skipped
        has_gradient = torch.zeros_like(log_partition, dtype=torch.bool)
        for gradient in (grad_log_prob, grad_entropy):
            has_gradient |= gradient != 0 if gradient is not None else False
        rows = has_gradient.nonzero()[:, 0]
        step = rows_at_once(unembedding, 1)
        chunk = max(64, BACKWARD_ELEMENTS.get(hidden.device.type, BACKWARD_ELEMENTS["cpu"]) // max(1, min(step, len(rows))))
        with torch.autocast(hidden.device.type, enabled=False):
            for part in torch.split(rows, step):
                h, tokens, log_z = hidden[part], targets[part], log_partition[part, None]
                for start in range(0, len(weight), chunk):
                    w = weight[start : start + chunk]
                    stop = start + len(w)
                    x = unembedding.product_to_logits_(float32_product(h, w), start, stop)
                    slope = logit_slope(x, unembedding)
                    p = (x - log_z).exp()
                    g = torch.zeros_like(x)
                    if grad_log_prob is not None:
                        g -= grad_log_prob[part, None] * p
                        inside = ((tokens >= start) & (tokens < stop)).nonzero()[:, 0]
                        g[inside, tokens[inside] - start] += grad_log_prob[part[inside]]
                    if grad_entropy is not None:
                        g -= grad_entropy[part, None] * p * (x - log_z + entropy[part, None])
                    g *= slope
                    gradients.add(part, start, stop, g, h)
        return *gradients.in_dtypes(*ctx.dtypes), *[None] * 4


class LogitGradients:
    """Sums, in float32, of what the gradients of logits give to the vectors and to the weight and bias of the unembedding.

    `needed` says for hidden, weight and bias whether the gradient is wanted.
    """

    def __init__(self, hidden: Tensor, unembedding: Unembedding, needed: Sequence[bool]):
        self.unembedding = unembedding
        self.hidden, self.weight, self.bias = (
            torch.zeros_like(tensor, dtype=torch.float32) if tensor is not None and wanted else None
            for tensor, wanted in zip((hidden, unembedding.weight, unembedding.bias), needed, strict=True)
        )

    def add(self, rows: Tensor, start: int, stop: int, g: Float[Tensor, "n chunk"], vectors: Float[Tensor, "n d"]) -> None:
        """Adds the gradients `g` of the products (scaled and with their bias) of the vectors in `rows` with tokens start...stop."""
        if self.bias is not None:
            self.bias[start:stop] += g.sum(0)
        g *= self.unembedding.scale
        if self.hidden is not None:
            self.hidden[rows] += g.to(self.unembedding.weight.dtype) @ self.unembedding.weight[start:stop]
        if self.weight is not None:
            self.weight[start:stop] += g.to(vectors.dtype).t() @ vectors

    def in_dtypes(self, hidden: torch.dtype, weight: torch.dtype) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        """The three sums as the inputs' dtypes ask."""
        bias = None if self.unembedding.bias is None else self.unembedding.bias.dtype
        wanted = zip((self.hidden, self.weight, self.bias), (hidden, weight, bias), strict=True)
        first, second, third = (None if total is None else total.to(dtype) for total, dtype in wanted)
        return first, second, third


def float32_product(vectors: Float[Tensor, "n d"], weight: Float[Tensor, "chunk d"]) -> Float[Tensor, "n chunk"]:
    return gpu_product.float32_product(vectors, weight) if weight.device.type == "cuda" else vectors.float() @ weight.float().t()


def logit_slope(x: Float[Tensor, "n chunk"], unembedding: Unembedding) -> Tensor | float:
    """The derivative of each logit x with respect to scale · product + bias."""
    if unembedding.softcap is None:
        return 1 / unembedding.temperature
    return (1 - (x * unembedding.temperature / unembedding.softcap) ** 2) / unembedding.temperature
