"""Pearson's correlation from means, so that a bootstrap of means gives its interval."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float

Array = np.ndarray


def moments(x: Float[Array, " n"], y: Float[Array, " n"]) -> Float[Array, "n 5"]:
    """x, y, x², y² and xy of each pair: their means give the correlation."""
    return np.stack([x, y, x * x, y * y, x * y], axis=-1)


def correlation_of_means(means: Float[Array, "*any 5"]) -> Float[Array, "*any"]:
    """Pearson's r from the means of `moments`: (E xy - E x E y) / √(Var x Var y), NaN if x or y does not vary."""
    x, y, xx, yy, xy = np.moveaxis(means, -1, 0)
    variances = np.stack([xx - x * x, yy - y * y])
    varies = (variances > 1e-12).all(axis=0)
    with np.errstate(invalid="ignore", divide="ignore"):
        r = np.where(varies, (xy - x * y) / np.sqrt(variances.prod(axis=0)), np.nan)
    return np.asarray(r.clip(-1, 1))
