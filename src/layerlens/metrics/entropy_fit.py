"""How reward follows the entropy of a policy in training."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float

Array = np.ndarray


def reward_entropy_fit(entropy: Float[Array, " steps"], reward: Float[Array, " steps"]) -> tuple[float, float, float]:
    """a, b and R² of reward = b - a · e^H, by least squares (Cui et al. 2025, arXiv 2505.22617); a > 0 if entropy is traded for reward.

    `entropy` is H, nats. NaN if there are fewer than three steps, or the entropy does not vary.
    """
    x = np.exp(entropy)
    spread = float(((x - x.mean()) ** 2).sum()) if len(x) else 0.0
    if len(x) < 3 or spread == 0:
        return float("nan"), float("nan"), float("nan")
    slope = float(((x - x.mean()) * (reward - reward.mean())).sum()) / spread
    b = float(reward.mean() - slope * x.mean())
    left, total = float(((reward - b - slope * x) ** 2).sum()), float(((reward - reward.mean()) ** 2).sum())
    return -slope, b, 1 - left / total if total > 0 else float("nan")
