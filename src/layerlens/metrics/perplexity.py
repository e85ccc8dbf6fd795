"""Perplexity of a text under a policy, and its logarithm."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float

Array = np.ndarray


def log_perplexity(mean_logp: Float[Array, "*any"]) -> Float[Array, "*any"]:
    """Minus the mean log-probability of the next token, nats per token: the cross-entropy of the text under the policy."""
    value: Float[Array, "*any"] = -mean_logp
    return value


def perplexity(mean_logp: Float[Array, "*any"]) -> Float[Array, "*any"]:
    """exp(-mean log-probability of the next token); infinite when the mean is below about -709 nats, the range of float64."""
    with np.errstate(over="ignore"):  # hundreds of nats are possible when states are decoded without a norm
        value: Float[Array, "*any"] = np.exp(log_perplexity(mean_logp))
    return value
