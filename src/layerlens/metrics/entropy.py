"""Entropy of a policy, from sums over its logits, and its change from a module's input to its output."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float
from torch import Tensor

Array = np.ndarray


def entropy(S: Float[Tensor, "*rows"], A: Float[Tensor, "*rows"]) -> Float[Tensor, "*rows"]:
    """H(π) = -Σ π log π = log S - A / S in nats, at least 0 (Shannon 1948), free of cancellation between large logits.

    Of a policy's logits x with maximum m, `S` is Σ e^(x-m) and `A` is Σ e^(x-m) (x-m), over the whole vocabulary.
    """
    value: Float[Tensor, "*rows"] = (S.log() - A / S).clamp_min(0)
    return value


def collision_entropy(squares: Float[Tensor, "*rows"]) -> Float[Tensor, "*rows"]:
    """H_2 = -log Σ π² in nats, Rényi's entropy of order 2 (Rényi 1961): the negative logarithm of the probability that two draws agree.

    `squares` is Σ π². H_2 lies between 0 and the entropy H; a heavy tail of unlikely tokens, which raises H, hardly moves it.
    """
    value: Float[Tensor, "*rows"] = (-squares.log()).clamp_min(0)
    return value


def entropy_change(before: Float[Array, "*any"], after: Float[Array, "*any"]) -> Float[Array, "*any"]:
    """ΔS = S(after) - S(before), nats: above 0 a module spreads probability over more tokens, below 0 it commits.

    `before` and `after` are entropies of the policies at a module's input and output (docs/definitions.md, `entropy_change`;
    equations 11 to 13 of Bottom-up Policy Optimization, arXiv 2512.19673).
    """
    change: Float[Array, "*any"] = after - before
    return change
