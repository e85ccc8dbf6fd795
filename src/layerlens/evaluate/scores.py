"""Avg@K and Pass@k from right and wrong samples."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
from jaxtyping import Bool, Float

from layerlens.metrics.bootstrap import LEVEL, RESAMPLES, bootstrap_means, interval
from layerlens.metrics.pass_at_k import pass_at_k

Array = np.ndarray


def avg_at_k(correct: Bool[Array, "problems samples"], k: int | None = None) -> Float[Array, " problems"]:
    """Share of right answers among each problem's first `k` (all by default). Raises ValueError unless 1 <= k <= samples."""
    samples = correct.shape[1]
    k = samples if k is None else k
    if not 1 <= k <= samples:
        raise ValueError(f"expected 1 <= k <= {samples}, got k={k}")
    return correct[:, :k].mean(axis=1, dtype=np.float64)  # type: ignore[no-any-return]


def powers_of_two(n: int) -> list[int]:
    """1, 2, 4, ... up to n."""
    return [1 << power for power in range(n.bit_length()) if 1 << power <= n]


def pass_table(
    correct: Bool[Array, "problems samples"],
    ks: Sequence[int] | None = None,
    *,
    level: float = LEVEL,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> pd.DataFrame:
    """Pass@k averaged over problems, one row per k: `k`, `mean`, and the bootstrap interval over problems `low`, `high`.

    One problem says nothing about its spread: its interval is NaN. `ks` are 1, 2, 4, ... by default. Pass@1 is Avg@K.
    """
    n = correct.shape[1]
    ks = powers_of_two(n) if ks is None else list(ks)
    right = correct.sum(axis=1)
    values = np.stack([np.asarray(pass_at_k(n, right, k)) for k in ks], axis=1)
    mean, drawn = bootstrap_means(values, np.ones_like(values), resamples, seed)
    low, high = interval(drawn, level)
    return pd.DataFrame({"k": ks, "mean": mean, "low": low, "high": high})
