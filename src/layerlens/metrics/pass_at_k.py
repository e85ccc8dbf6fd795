"""Pass@k."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float, Integer

Array = np.ndarray


def pass_at_k(n: int, c: int | Sequence[int] | Integer[Array, "*problems"], k: int) -> float | Float[Array, "*problems"]:
    """Unbiased chance that at least one of `k` samples is right, given `c` right ones among `n`: 1 - C(n-c, k) / C(n, k).

    Computed in whole numbers, so exact to rounding for any n. A number for a number, an array for an array of counts.

    Raises ValueError unless 0 <= c <= n and 1 <= k <= n.
    """
    counts = np.asarray(c)
    kinds, where = np.unique(counts, return_inverse=True)
    chances = np.array([_chance(n, int(kind), k) for kind in kinds], dtype=np.float64)
    spread: Float[Array, "*problems"] = chances[where].reshape(counts.shape)
    return float(spread) if counts.ndim == 0 else spread


def _chance(n: int, c: int, k: int) -> float:
    """Unbiased chance that at least one of `k` samples is right, given `c` right ones among `n`: 1 - C(n-c, k)/C(n, k)."""
    if not 0 <= c <= n or not 1 <= k <= n:
        raise ValueError(f"expected 0 <= c <= n and 1 <= k <= n, got n={n}, c={c}, k={k}")
    return 1.0 - math.comb(n - c, k) / math.comb(n, k)
