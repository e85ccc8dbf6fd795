"""How a model's mean entropy falls with depth (DEFINITIONS, "Phases and the choice of layer").

All take mean entropies of `resid_post` at layers 1...L along the last axis, so a bootstrap of curves goes in as it is.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Float

Array = np.ndarray

CONVERGED = 0.1
LAST_LAYERS = 3


def convergence_layer(entropy: Float[Array, "*curves layers"], threshold: float = CONVERGED) -> Float[Array, "*curves"]:
    """The first layer (from 1) from which entropy stays under `threshold` of its maximum; NaN where it never does."""
    under = entropy < threshold * entropy.max(-1, keepdims=True)
    stays = np.logical_and.accumulate(under[..., ::-1], axis=-1)[..., ::-1]
    first = np.where(stays.any(-1), stays.argmax(-1) + 1.0, np.nan)
    return np.where(np.isnan(entropy).any(-1), np.nan, first)


def abruptness(entropy: Float[Array, "*curves layers"], last: int = LAST_LAYERS) -> Float[Array, "*curves"]:
    """Share of the entropy drop, from the curve's maximum to its end, that happens in the last three layers.

    Below 0 where the entropy rises in them; NaN where it does not fall or there are no layers before.
    """
    if entropy.shape[-1] <= last:
        return np.full(entropy.shape[:-1], np.nan)
    total = entropy.max(-1) - entropy[..., -1]
    with np.errstate(invalid="ignore", divide="ignore"):
        share: Array = np.where(total > 0, (entropy[..., -1 - last] - entropy[..., -1]) / total, np.nan)
    return share


def effective_depth(entropy: Float[Array, "*curves layers"]) -> Float[Array, "*curves"]:
    """Area under the entropy curve over its maximum, as a share of L: 1 for a model undecided to the end."""
    with np.errstate(invalid="ignore", divide="ignore"):
        depth: Array = np.asarray(entropy.mean(-1) / entropy.max(-1))
    return depth
