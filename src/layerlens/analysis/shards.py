"""Parts of an analysis that are measured apart, and what is kept of it: both checked against what they cannot go with."""

from __future__ import annotations

from pathlib import Path

from layerlens.errors import SelectionError
from layerlens.types import Keep


def require_keepable(keep: Keep, out: str | Path | None, draw: object) -> None:
    """Raises SelectionError if means alone are to be kept of a run that is not on disk, or that needs its rows again."""
    if keep != "rows" and (keep != "means" or out is None or draw == "auto"):
        raise SelectionError("keep must be 'rows', or 'means' with a folder in out= and without tokens_per_sample='auto'")


def samples_of(shard: tuple[int, int] | None, samples: int, out: str | Path | None, draw: object, measures_spread: bool) -> range:
    """The numbers of a shard's samples: all without one.

    Raises SelectionError if there is no such shard, or it cannot be measured without the others.
    """
    if shard is None:
        return range(samples)
    number, count = shard
    if not 1 <= number <= count <= samples:
        raise SelectionError(f"shard must be (i, n) with 1 ≤ i ≤ n ≤ {samples}, the number of samples; got {number}/{count}")
    if out is None or draw == "auto" or measures_spread:
        raise SelectionError("a shard needs a folder (out=), and numbers for tokens_per_sample and spread: it cannot ask the other shards")
    return range(samples * (number - 1) // count, samples * number // count)
