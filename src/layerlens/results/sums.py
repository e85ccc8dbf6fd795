"""Each sample's sum and count of a variable: what means and their resamples are made of."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import xarray as xr

from layerlens.errors import SelectionError
from layerlens.results.rows import sums_by_sample
from layerlens.types import METRIC_INFO, Weighting

MEANS_OF_PERPLEXITY = {"sample": "geometric mean over samples", "token": "exp of the mean over tokens"}


@dataclass(frozen=True)
class Sums:
    """Sums and counts as `bootstrap_means` takes them, float64, with `sample` in front.

    Attributes:
        dims, coords: of what is summed, without `sample`; attrs: of the variable.
        per_sample: whether the variable has one value per sample, rather than per row.
    """

    sums: np.ndarray
    counts: np.ndarray
    dims: tuple[Any, ...]
    coords: dict[str, Any]
    attrs: dict[str, Any]
    per_sample: bool = False

    def weighted(self, over: Weighting) -> Sums:
        """Sums over rows, as `sums_by_sample(over="token")` gives them, under another weighting."""
        if over == "token":
            return self
        if over != "sample":
            raise SelectionError(f"over must be 'sample' or 'token', got {over!r}")
        with np.errstate(invalid="ignore"):
            means = np.where(self.counts > 0, self.sums / self.counts, 0.0)
        return replace(self, sums=means, counts=(self.counts > 0).astype(np.float64))

    def counted(self, problems: np.ndarray) -> dict[str, int]:
        """How many samples have a value, and how many `problems` (a number for each sample) these answer."""
        there = self.counts.reshape(len(self.counts), -1).any(axis=1)
        return {"samples": int(there.sum()), "problems": len(np.unique(problems[there]))}


def sums_of(data: xr.Dataset, values: xr.DataArray, keep: np.ndarray, over: Weighting) -> Sums:
    """`sums_by_sample` of a variable of `data`, or of one that follows from its variables, with what describes it."""
    dims = values.dims[1:]
    coords = {str(dim): values.coords[dim].values for dim in dims if dim in values.coords}
    return Sums(*sums_by_sample(data, values, keep, over), dims, coords, dict(values.attrs), "token" not in values.dims)


def describe_mean(name: str, over: Weighting) -> dict[str, str]:
    """Long name and unit of the mean of a variable."""
    long_name, units = METRIC_INFO[name]
    return {"long_name": f"{MEANS_OF_PERPLEXITY[over]}: {long_name}" if name == "perplexity" else f"mean {long_name}", "units": units}
