"""What plots ask of runs, with errors that name what a run lacks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypedDict

import xarray as xr

from layerlens.errors import SelectionError
from layerlens.plots.kit.labels import numbered
from layerlens.results import Run
from layerlens.results.schema import DIMS
from layerlens.types import DERIVED_FROM, METRIC_INFO, Rows, Segment, Weighting


class MeanOptions(TypedDict, total=False):
    """Passed on to `Run.mean`: how to average, and which interval to draw."""

    over: Weighting
    rows: Rows
    segment: Segment | None
    drop_first: int
    level: float
    resamples: int
    seed: int


BAND_ROWS = 200_000
"""Rows whose distribution a figure draws at most; of a run with more, samples spread evenly over it."""


def as_runs(runs: Run | Sequence[Run]) -> list[Run]:
    """One run or several as a list. Raises SelectionError if there is none."""
    listed = [runs] if isinstance(runs, Run) else list(runs)
    if not listed:
        raise SelectionError("no run to draw: pass at least one")
    return listed


def of_samples(shown: Run, run: Run) -> str:
    """What a caption says if `Run.thinned` has left samples out."""
    return "" if shown is run else f" of {shown.n_samples} of {run.n_samples} samples, spread evenly"


def legend_names(runs: Sequence[Run]) -> list[str]:
    """A legend entry per run: its model, and the norm or a number if models come twice."""
    names = [run.model for run in runs]
    if len({run.convention for run in runs}) > 1:
        names = [f"{name} (norm: {run.convention})" for name, run in zip(names, runs, strict=True)]
    return numbered(names)


def drawn_metric(metric: str) -> str:
    """What a figure shows of a metric: of perplexity its logarithm, since states read without a norm reach 10^150."""
    return "log_perplexity" if metric == "perplexity" else metric


def require_metric(metric: str) -> None:
    """Raises SelectionError unless the metric has one value per token, layer and site (or module)."""
    if metric not in METRIC_INFO:
        raise SelectionError(
            f"unknown metric {metric!r}: choose from {', '.join(name for name in METRIC_INFO if not name.startswith('top_'))}"
        )
    dims = DIMS.get(metric, DIMS["entropy"])
    if metric in DERIVED_FROM or len(dims) != 3 or dims[:2] != ("token", "layer"):
        raise SelectionError(f"{metric!r} is not one value per layer and site: draw similarity and cka with plots.similarity")


def mean_without_interval(run: Run, metric: str, options: MeanOptions) -> xr.Dataset:
    """`Run.mean` for a figure that draws no interval, so nothing is resampled."""
    alone: MeanOptions = {**options, "resamples": 1}
    return run.mean(metric, **alone)


def mean_at(mean: xr.Dataset, site: str, run: Run) -> xr.Dataset:
    """The mean by layer at one site (or of one module). Raises SelectionError if the run lacks it."""
    dim = column_dim(mean)
    there = [str(name) for name in mean[dim].values]
    if site not in there:
        raise SelectionError(f"the run of {run.model} has no {dim} {site!r}; it has {', '.join(there)}")
    return mean.sel({dim: site})


def column_dim(values: xr.Dataset | xr.DataArray) -> str:
    """`site` or `module`: the dimension that a metric has beside layers."""
    return "module" if "module" in values.dims else "site"
