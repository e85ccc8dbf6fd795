"""Layers and shares in words, as every sentence about a choice or a comparison writes them."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby


def layer_ranges(layers: Sequence[int]) -> str:
    """Layers from 1 as ranges, such as "3-5, 8"; "none" if there are none."""
    runs = [[layer for _, layer in group] for _, group in groupby(enumerate(sorted(layers)), lambda pair: pair[1] - pair[0])]
    return ", ".join(f"{run[0]}-{run[-1]}" if len(run) > 1 else f"{run[0]}" for run in runs) or "none"


def percent(value: float) -> str:
    """A share as a percentage that is never rounded to nothing or to everything; "-" for NaN."""
    if value != value:
        return "-"
    return "<1%" if 0 < value < 0.005 else ">99%" if 0.995 <= value < 1 else f"{value:.0%}"


def nats(value: float) -> str:
    """A signed number of nats with two or three digits that count, without an exponent."""
    digits = 0 if abs(value) >= 100 else 1 if abs(value) >= 1 else 2
    return f"{value:+.{digits}f} nats"


def enough(text: Sequence[str], most: int = 4) -> str:
    """The first texts in a row, and how many more there are."""
    return ", ".join(text[:most]) + (f" and {len(text) - most} more" if len(text) > most else "")
