"""How a model's mean entropy falls with depth (docs/definitions.md, "Convergence of a model").

All functions take mean entropies of the residual stream at depths 0...L, nats, along the last axis, so they take a bootstrap of
curves too. Depth 0 is the embedding, which a model's first layer may leave far behind. The measures are this project's own, after
the convergence that Bottom-up Policy Optimization (arXiv 2512.19673) describes, and under norm none they follow the scale of the
states, which the model's function does not show: `metrics.envelope` has measures that do not.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Float

Array = np.ndarray

CONVERGED = 0.1
LAST_LAYERS = 3


def convergence_layer(entropy: Float[Array, "*curves depths"], threshold: float = CONVERGED) -> Float[Array, "*curves"]:
    """The first layer (from 1) from which entropy stays below `threshold` times its maximum; NaN if there is none."""
    under = entropy < threshold * entropy.max(-1, keepdims=True)
    stays = np.logical_and.accumulate(under[..., ::-1], axis=-1)[..., ::-1]
    first = np.where(stays.any(-1), stays.argmax(-1), np.nan)
    return np.where(np.isnan(entropy).any(-1), np.nan, first)


def abruptness(entropy: Float[Array, "*curves depths"], last: int = LAST_LAYERS) -> Float[Array, "*curves"]:
    """Share of the entropy drop, from the curve's maximum to its end, that happens in the last three layers.

    Below 0 if the entropy rises in these layers; NaN if it never falls, or if the model has no other layers.
    """
    if entropy.shape[-1] <= last + 1:
        return np.full(entropy.shape[:-1], np.nan)
    total = entropy.max(-1) - entropy[..., -1]
    with np.errstate(invalid="ignore", divide="ignore"):
        share: Array = np.where(total > 0, (entropy[..., -1 - last] - entropy[..., -1]) / total, np.nan)
    return share


def effective_depth(entropy: Float[Array, "*curves depths"]) -> Float[Array, "*curves"]:
    """Area under the entropy curve (by trapezia) divided by its maximum and by L: 1 for a model whose entropy never falls."""
    area = ((entropy[..., 1:] + entropy[..., :-1]) / 2).mean(-1)
    with np.errstate(invalid="ignore", divide="ignore"):
        depth: Array = np.asarray(area / entropy.max(-1))
    return depth
