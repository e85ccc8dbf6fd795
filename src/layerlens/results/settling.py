"""How many tokens of a run settle at which layer, and whether responses that think deeper are right more often."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import xarray as xr
from jaxtyping import Bool, Float

from layerlens.errors import SelectionError
from layerlens.metrics.correlation import correlation_of_means, moments
from layerlens.metrics.intervals import LEVEL, RESAMPLES, bootstrap_means, interval
from layerlens.results.rows import sums_by_sample
from layerlens.results.run import Run
from layerlens.types import SEGMENTS, Rows, Segment, Weighting

Array = np.ndarray

MOST_BINS, FEWEST_IN_BIN = 5, 6
"""Bins of `accuracy_by_ratio` at most, and responses in each of them at least."""


def settling_shares(
    run: Run,
    correct: Bool[Array, " samples"] | None = None,
    *,
    over: Weighting = "sample",
    rows: Rows = "response",
    segment: Segment | None = None,
    drop_first: int = 0,
    level: float = LEVEL,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> xr.Dataset:
    """The share of tokens that settle at each layer (`settling_depth`), for groups of tokens, with its bootstrap interval.

    Args:
        run: with `js_to_final` of all layers.
        correct: whether each sample's response is right, as `Run.correct` gives it: the groups are then "right" and "wrong".
            Without it the groups are the segments of the rows.
        over, rows, segment, drop_first, level, resamples, seed: as in `Run.mean`.

    Returns:
        `mean`, `low` and `high`, each group × layer, and `unsettled`, the share that settles at no layer, by group. Groups without a
        token are left out. The attrs are those of a mean (`over`, `rows`, `segment`, `drop_first`, `level`, `samples`).
    """
    depth, layers = run.values("settling_depth").values, np.arange(1, run.n_layers + 1)
    at_layer = xr.DataArray((depth[:, None] == layers).astype(np.float64), dims=("token", "layer"))
    keep = run.row_mask(rows, drop_first, segment)
    found: dict[str, list[Array]] = {"mean": [], "low": [], "high": []}
    groups = {name: mask & keep for name, mask in _groups(run, correct).items() if (mask & keep).any()}
    for mask in groups.values():
        sums, counts = sums_by_sample(run.data, at_layer, mask, over)
        problems = len(np.unique(run.problems[counts.any(axis=1)]))
        point, means = bootstrap_means(sums, counts, resamples, seed, run.problems)
        for name, values in zip(found, (point, *interval(means, point, problems, level, bounds=(0.0, 1.0))), strict=True):
            found[name].append(values)
    variables = {name: (("group", "layer"), np.stack(values)) for name, values in found.items()}
    unsettled = ("group", 1 - variables["mean"][1].sum(1))
    samples = len(np.unique(run.data["sample"].values[keep]))
    attrs = {"over": over, "rows": rows, "segment": segment or "", "drop_first": drop_first, "level": level, "samples": samples}
    return xr.Dataset({**variables, "unsettled": unsettled}, {"group": list(groups), "layer": layers}, attrs)


def accuracy_by_ratio(
    run: Run,
    correct: Bool[Array, " samples"],
    *,
    rows: Rows = "response",
    segment: Segment | None = None,
    level: float = LEVEL,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> xr.Dataset:
    """The share of right responses among those with about the same deep-thinking ratio, with its bootstrap interval over problems.

    Responses are put into up to MOST_BINS bins of equally many, at least FEWEST_IN_BIN each, by their ratio.

    Args:
        run: with `js_to_final` of all layers.
        correct: whether each sample's response is right, as `Run.correct` gives it.
        rows, segment: which rows of a response its ratio is of, as in `Run.mean`.
        level, resamples, seed: as in `Run.mean`.

    Returns:
        By bin `ratio` (the bin's mean), `mean`, `low` and `high`; by sample `response_ratio` and `right`; and the scalars
        `correlation`, `correlation_low` and `correlation_high`: Pearson's r of ratio and correctness (1 or 0), NaN if one of them does
        not vary. Samples without a row to count are left out.

    Raises:
        SelectionError: `correct` has not one value per sample, or what `Run.sample_means` raises.
    """
    ratios = run.sample_means("deep_thinking_ratio", rows=rows, segment=segment).values
    if len(correct) != len(ratios):
        raise SelectionError(f"correct must have one value per sample, {len(ratios)}, got {len(correct)}")
    known = ~np.isnan(ratios)
    ratio, right, problems = ratios[known], np.asarray(correct)[known].astype(np.float64), run.problems[known]
    n, ones = len(np.unique(problems)), np.ones(len(ratio))
    bins = max(1, min(MOST_BINS, len(ratio) // FEWEST_IN_BIN))
    members = (ratio.argsort(kind="stable").argsort(kind="stable") * bins // len(ratio))[:, None] == np.arange(bins)
    point, means = bootstrap_means(right[:, None] * members, members.astype(np.float64), resamples, seed, problems)
    low, high = interval(means, point, n, level, bounds=(0.0, 1.0))
    columns = moments(ratio, right)
    r, resampled = (
        correlation_of_means(values) for values in bootstrap_means(columns, ones[:, None] * np.ones(5), resamples, seed, problems)
    )
    r_low, r_high = interval(resampled, r, n, level, bounds=(-1.0, 1.0))
    center = (ratio[:, None] * members).sum(0) / members.sum(0)
    by_bin = {name: ("bin", values) for name, values in {"ratio": center, "mean": point, "low": low, "high": high}.items()}
    scalars = {"correlation": float(r), "correlation_low": float(r_low), "correlation_high": float(r_high)}
    attrs = {"over": "sample", "rows": rows, "segment": segment or "", "drop_first": 0, "level": level, "samples": len(ratio)}
    return xr.Dataset({**by_bin, "response_ratio": ("sample", ratio), "right": ("sample", right.astype(bool)), **scalars}, attrs=attrs)


def _groups(run: Run, correct: Bool[Array, " samples"] | None) -> Mapping[str, Bool[Array, " tokens"]]:
    """Which tokens belong to each group, along `token`."""
    if correct is None:
        return {name: run.data["segment"].values == name for name in SEGMENTS}
    if len(correct) != run.n_samples:
        raise SelectionError(f"correct must have one value per sample, {run.n_samples}, got {len(correct)}")
    place = np.searchsorted(run.data["sample_index"].values, run.data["sample"].values)
    right: Float[Array, " tokens"] = np.asarray(correct, bool)[place]
    return {"right": right, "wrong": ~right}
