"""Means over a monitor's probe problems, kept problem by problem so that a snapshot can be paired with the first one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float

from layerlens.metrics.intervals import bootstrap_means, difference_bounds, interval
from layerlens.metrics.perplexity import perplexity
from layerlens.results.training_log import CHANGE, HIGH, LOW
from layerlens.storage.files import write_atomic
from layerlens.types import UNBOUNDED

Array = np.ndarray

Row = dict[str, int | float | None]
"""Numbers of a snapshot by name; None for a mean over nothing, and for the interval of a single problem."""


@dataclass(frozen=True)
class ProbeMean:
    """A mean over the probe problems: Σ sums / Σ counts, one of each per problem; `bounds` is the range of its values."""

    sums: Float[Array, " problems"]
    counts: Float[Array, " problems"]
    bounds: tuple[float, float] = UNBOUNDED


ProbeMeans = Mapping[str, ProbeMean]


def with_intervals(means: ProbeMeans, start: ProbeMeans) -> Row:
    """Each mean under its name with its 95% interval, and its change since `start` with the interval of paired problems.

    Both are resampled together, so that each resample draws the same problems of this snapshot and of the first. A name that `start`
    lacks has no change. Beside `log_perplexity` stands its exponential, whose change has no scale of its own.
    """
    now, names = list(means.values()), list(means)
    then = [start.get(name, means[name]) for name in names]
    sums, counts = (np.stack([getattr(mean, part) for mean in (*now, *then)], axis=1) for part in ("sums", "counts"))
    points, draws = bootstrap_means(sums, counts)
    row: Row = {}
    for place, name in enumerate(names):
        column, first = [place], [place + len(names)]
        n = int((counts[:, place] > 0).sum())
        bounds = means[name].bounds
        ends = interval(draws[:, column], points[column], n, bounds=bounds)
        row |= _triple(name, points[place], *ends)
        if name == "log_perplexity":
            row |= _triple("perplexity", *(perplexity(-end) for end in (points[column], *ends)))
        if name in start:
            change = points[column] - points[first]
            row |= _triple(
                name + CHANGE, change, *interval(draws[:, column] - draws[:, first], change, n, bounds=difference_bounds(bounds))
            )
    return row


def save_means(file: Path, means: ProbeMeans) -> None:
    """Writes sums and counts to an `.npz` file, in one step."""
    arrays: dict[str, Any] = {name: np.stack([mean.sums, mean.counts]) for name, mean in means.items()}

    def write(path: Path) -> None:
        with path.open("wb") as opened:
            np.savez(opened, **arrays)

    write_atomic(file, write)


def load_means(file: Path) -> ProbeMeans:
    """What `save_means` wrote, without bounds; nothing if there is no such file, as in trainings of before it was kept."""
    if not file.exists():
        return {}
    with np.load(file) as kept:
        return {name: ProbeMean(*kept[name]) for name in kept.files}


def _triple(name: str, *values: Any) -> Row:
    """A mean and the ends of its interval under their names; None in place of NaN."""
    numbers = [float(np.squeeze(value)) for value in values]
    return {key: None if np.isnan(number) else number for key, number in zip((name, name + LOW, name + HIGH), numbers, strict=True)}
