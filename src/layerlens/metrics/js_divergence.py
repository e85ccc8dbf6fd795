"""Jensen-Shannon divergence of two policies, from entropies and a sum over their mixture."""

from __future__ import annotations

import math

from jaxtyping import Float
from torch import Tensor


def js_divergence(
    s_log_s: Float[Tensor, "*rows"], p_entropy: Float[Tensor, "*rows"], q_entropy: Float[Tensor, "*rows"]
) -> Float[Tensor, "*rows"]:
    """JS(p, q) = [H((p + q) / 2) - (H(p) + H(q)) / 2] / ln 2 in bits, from 0 (equal) to 1 (no token in common) (Lin 1991).

    Args:
        s_log_s: Σ s log s of the sum s = p + q of both distributions, from which H(s / 2) = log 2 - Σ s log s / 2.
        p_entropy, q_entropy: H(p) and H(q), nats.
    """
    mixture = math.log(2) - s_log_s / 2
    value: Float[Tensor, "*rows"] = ((mixture - (p_entropy + q_entropy) / 2) / math.log(2)).clamp(0, 1)
    return value
