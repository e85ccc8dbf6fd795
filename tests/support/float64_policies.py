"""Policies of whole logits in float64, and the backends of a CPU that can be held against them on this machine."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from layerlens.decode.cpu.native_library import library
from layerlens.decode.unembedding import Unembedding

FAMILIES = ("torch", *(("native",) if library() is not None else ()))
"""The families of backends that run here without being compiled first; "native" needs a C++ compiler."""


def log_policy(logits: Tensor) -> Tensor:
    """Log-probabilities in float64."""
    return logits.double().log_softmax(-1)


def unembedded_log_policy(hidden: Tensor, unembedding: Tensor | Unembedding) -> Tensor:
    """Log-probabilities of vectors in float64, with the bias, scale, soft-cap and temperature of an `Unembedding`."""
    unembedding = unembedding if isinstance(unembedding, Unembedding) else Unembedding(unembedding)
    x = unembedding.scale * (hidden.double() @ unembedding.weight.double().T)
    x = x if unembedding.bias is None else x + unembedding.bias.double()
    x = x if unembedding.softcap is None else unembedding.softcap * torch.tanh(x / unembedding.softcap)
    return (x / unembedding.temperature).log_softmax(-1)


def entropy(logp: Tensor) -> Tensor:
    """H = -Σ π log π of log-probabilities, nats."""
    return -(logp.exp() * logp).sum(-1)


def kl(logp: Tensor, logq: Tensor) -> Tensor:
    """KL(p ‖ q) of log-probabilities, nats."""
    return (logp.exp() * (logp - logq)).sum(-1)


def js(logp: Tensor, logq: Tensor) -> Tensor:
    """Jensen-Shannon divergence of log-probabilities, bits."""
    middle = torch.logaddexp(logp, logq.expand_as(logp)) - math.log(2)
    return (kl(logp, middle) + kl(logq.expand_as(logp), middle)) / (2 * math.log(2))


def collision_entropy(logp: Tensor) -> Tensor:
    """-log Σ π² of log-probabilities, nats."""
    return -(2 * logp).logsumexp(-1)


def rank(logits: Tensor, targets: Tensor) -> Tensor:
    """The place of each row's target among all tokens, from 1; of equal logits the lowest token comes first."""
    order = logits.argsort(dim=-1, descending=True, stable=True)
    return (order == targets.expand(logits.shape[:-1])[..., None]).double().argmax(-1) + 1
