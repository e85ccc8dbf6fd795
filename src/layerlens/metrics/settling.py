"""At which layer the prediction of a token settles, and which tokens settle late."""

from __future__ import annotations

import math

import numpy as np
from jaxtyping import Bool, Float, Shaped

Array = np.ndarray

SETTLED = 0.5
"""g: the divergence in bits up to which a policy counts as settled (Chen et al. 2026, arXiv 2602.13517)."""
DEEP = 0.85
"""ρ: the relative depth from which a layer counts as deep (the same paper)."""


def settling_depth(js: Float[Array, "tokens layers"], threshold: float = SETTLED) -> Float[Array, " tokens"]:
    """The first layer (from 1) at which the smallest divergence so far, min over m <= l of JS(π_m, π_f), is at most `threshold`.

    `js` is `js_to_final` of `resid_post` at layers 1...L, bits. NaN if no layer comes so close, which under norm final cannot be: there
    π_L is π_f (Chen et al. 2026, arXiv 2602.13517).
    """
    return _first(np.minimum.accumulate(js, axis=-1) <= threshold)


def agreement_depth(agrees: Shaped[Array, "tokens layers"]) -> Float[Array, " tokens"]:
    """The first layer (from 1) from which the most likely token is the final policy's up to layer L; NaN if it is not at layer L."""
    return _first(np.logical_and.accumulate(agrees.astype(bool)[..., ::-1], axis=-1)[..., ::-1])


def settles_deep(depth: Float[Array, " tokens"], n_layers: int, share: float = DEEP) -> Bool[Array, " tokens"]:
    """Whether each token settles in the last 1 - ρ of the L layers, at a layer l >= ⌈ρ L⌉; ρ is `share`.

    The mean over the tokens of a response is its deep-thinking ratio (Chen et al. 2026, arXiv 2602.13517). A token that settles nowhere
    (NaN) counts among the tokens, but not as deep.
    """
    first_deep = math.ceil(round(share * n_layers, 9))  # 0.85 · 20 must not be 18 by rounding
    deep: Bool[Array, " tokens"] = depth >= first_deep
    return deep


def _first(reached: Bool[Array, "tokens layers"]) -> Float[Array, " tokens"]:
    depth: Float[Array, " tokens"] = np.where(reached.any(-1), reached.argmax(-1) + 1.0, np.nan)
    return depth
