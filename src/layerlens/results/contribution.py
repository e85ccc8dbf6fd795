"""The contributions of layers to what training gains, as a table and with the draws behind its intervals."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import pandas as pd
from jaxtyping import Float
from scipy.stats import permutation_test, rankdata

from layerlens.errors import SelectionError
from layerlens.metrics.intervals import LEVEL, interval
from layerlens.metrics.rank_correlation import rank_correlation, rank_correlations


@dataclass(frozen=True)
class LayerContribution:
    """C(k) of the layers that were trained alone, from `layerlens.layer_contribution`.

    Attributes:
        table: one row for each layer, or set of layers, that was trained alone, from the lowest: `layers` (text, "3" or "1-3"), `layer`
            (its number, NaN for a set), `gain` in accuracy over the model before training, `low` and `high` (its interval for other
            problems like these, of paired problems), `seeds_low` and `seeds_high` (for other seeds of training); `contribution` C(k), and
            its intervals `contribution_low`, `..._high`, `..._seeds_low`, `..._seeds_high`; `seeds` and `problems`; and `learning_rate`,
            NaN where evaluations do not tell it. An end that does not exist is NaN: C(k) unless the full gain's interval for other
            problems lies above 0; for other seeds if there is one seed.
        full: the row of the training of all layers, without a contribution.
        draws: by "problems" and "seeds", the gain on each bootstrap draw, resamples × rows of the table.
        base: accuracy of the model before training.
        model, task, level: what was evaluated, and the level of the intervals.
    """

    table: pd.DataFrame
    full: Mapping[str, Any]
    base: float
    model: str
    task: str
    level: float = LEVEL
    draws: Mapping[str, Float[np.ndarray, "resamples rows"]] = field(default_factory=dict, repr=False)

    def learning_rates(self) -> str:
        """In words, if layers alone were trained at another learning rate than all layers; else empty, as where rates are not told."""
        alone, full = sorted(set(self.table["learning_rate"].dropna())), float(self.full["learning_rate"])
        if not alone or math.isnan(full) or alone == [full]:
            return ""
        ends = " to ".join(f"{rate:g}" for rate in dict.fromkeys((alone[0], alone[-1])))
        return f"learning rates: layers alone {ends}, all layers {full:g}"

    def rank_correlation(self, values: Mapping[int, float], over: Literal["problems", "seeds"] = "problems") -> tuple[float, float, float]:
        """Spearman's rank correlation of the gain with another quantity of the layers, and the ends of its interval.

        The rank of a layer's gain is that of C(k), as long as all layers together gain. The interval is for other problems like these or
        for other seeds of the gain; `values` stay as they are. NaN if it does not exist.

        Args:
            values: the other quantity, by layer; layers without one are left out.

        Raises SelectionError if fewer than three layers have both.
        """
        rows, other = self._with_value(values)
        point = rank_correlation(self.table["gain"].to_numpy()[rows], other)
        drawn = rank_correlations(self.draws[over][:, rows], other)
        units = int(self.full[over])
        low, high = interval(drawn, np.asarray(point), units, self.level, bounds=(-1.0, 1.0))
        return point, float(low), float(high)

    def chance(self, values: Mapping[int, float]) -> float:
        """The share of all orders of the layers in which `values` correlate with the gains as much as they do, in either direction.

        A test by permutation, exact up to 7 layers and by 20,000 drawn orders above: the intervals of `rank_correlation` keep to these
        layers, and this says what so few of them are worth. NaN if all gains, or all values, are alike.

        Raises SelectionError as `rank_correlation`.
        """
        rows, other = self._with_value(values)
        gains, others = (rankdata(each) - (len(rows) + 1) / 2 for each in (self.table["gain"].to_numpy()[rows], other))
        if not gains.any() or not others.any():
            return math.nan

        def strength(ranks: np.ndarray, axis: int) -> Any:
            return np.abs((ranks * others).sum(axis))

        test = permutation_test(
            (gains,), strength, permutation_type="pairings", alternative="greater", vectorized=True, n_resamples=20_000, rng=0
        )
        return float(test.pvalue)

    def _with_value(self, values: Mapping[int, float]) -> tuple[list[int], np.ndarray]:
        """The rows of the layers that have a value, and the values."""
        rows = [row for row, layer in enumerate(self.table["layer"]) if layer in values and np.isfinite(values[layer])]
        if len(rows) < 3:
            raise SelectionError(f"a rank correlation needs three layers that were trained alone and have a value, got {len(rows)}")
        return rows, np.array([values[int(self.table["layer"].iloc[row])] for row in rows])
