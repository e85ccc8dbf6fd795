"""Metrics that follow from others by arithmetic alone."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float

Array = np.ndarray


def entropy_change(before: Float[Array, "*any"], after: Float[Array, "*any"]) -> Float[Array, "*any"]:
    """ΔS = S(after) - S(before), nats: above 0 a module spreads probability over more tokens, below 0 it commits.

    `before` and `after` are entropies of the policies at a module's input and output (docs/definitions.md, `entropy_change`;
    equations 11 to 13 of Bottom-up Policy Optimization, arXiv 2512.19673).
    """
    change: Float[Array, "*any"] = after - before
    return change


def perplexity(mean_logp: Float[Array, "*any"]) -> Float[Array, "*any"]:
    """exp(-mean log-probability of the next token); infinite when the mean is below about -709 nats, the range of float64."""
    with np.errstate(over="ignore"):  # hundreds of nats are possible when states are decoded without a norm
        value: Float[Array, "*any"] = np.exp(-mean_logp)
    return value
