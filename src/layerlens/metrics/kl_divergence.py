"""Kullback-Leibler divergence of one policy from another, from sums over their logits."""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor


def kl_divergence(
    D: Float[Tensor, "*rows"], p_S: Float[Tensor, "*rows"], p_log_z: Float[Tensor, "*rows"], q_log_z: Float[Tensor, "*rows"]
) -> Float[Tensor, "*rows"]:
    """KL(p ‖ q) = Σ π_p (log π_p - log π_q) = D / S_p - log Z_p + log Z_q in nats, at least 0 (Kullback & Leibler 1951).

    Of two policies' logits p and q, `D` is Σ e^(p-m_p) (p-q) and `p_S` is Σ e^(p-m_p), with m_p the maximum of p.
    """
    value: Float[Tensor, "*rows"] = (D / p_S - p_log_z + q_log_z).clamp_min(0)
    return value


def kl_from_cross_entropy(cross_entropy: Float[Tensor, "*rows"], entropy: Float[Tensor, "*rows"]) -> Float[Tensor, "*rows"]:
    """KL(p ‖ q) = -Σ π_p log π_q - H(p) in nats, at least 0: the cross-entropy of p and q less the entropy of p."""
    value: Float[Tensor, "*rows"] = (cross_entropy - entropy).clamp_min(0)
    return value
