"""What one layer contributes to what training all layers gains."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float

Array = np.ndarray


def contribution(gain: Float[Array, "*rest layers"], full_gain: Float[Array, "*rest"]) -> Float[Array, "*rest layers"]:
    """C(k) = (S_k − S_base) / (S_full − S_base), a share: 1 is what training all layers gains ("Is One Layer Enough?", arXiv 2607.01232).

    `gain` is S_k − S_base of each layer and `full_gain` S_full − S_base, in one unit. NaN if training all layers gains nothing.
    """
    share: Array = gain / np.where(full_gain == 0, np.nan, full_gain)[..., None]
    return share
