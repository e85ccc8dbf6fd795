"""Log-probability of a token under a policy."""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor


def log_partition(m: Float[Tensor, "*rows"], S: Float[Tensor, "*rows"]) -> Float[Tensor, "*rows"]:
    """log Z = log Σ e^x = m + log S, float64: of a policy's logits x, `m` is the maximum and `S` is Σ e^(x-m)."""
    return m.double() + S.log()


def log_probability(logit: Float[Tensor, "*#rows"], log_z: Float[Tensor, "*#rows"]) -> Float[Tensor, "*#rows"]:
    """log π(v) = x_v - log Z in nats, float64, of the token with logit x_v. The arguments broadcast."""
    return logit.double() - log_z
