"""What a comparison says, in sentences with their uncertainty."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import pairwise

import pandas as pd

MAIN = "late_share"
"""The measure that the verdict is about."""


def scale_note(table: pd.DataFrame) -> list[str]:
    """Under another norm than final: that the KL columns need it, with the command; under norm none, that it compares scales."""
    norm = table["norm"].iloc[0]
    if norm == "final":
        return []
    scales = (
        "norm none compares scales, which a model's function does not show: its entropies, phases and chosen layers say nothing about "
        "which model settles later. For that, and for"
        if norm == "none"
        else "for"
    )
    return [f"{scales} the KL columns, analyse the same prompts with norm final: layerlens analyze MODEL PROMPTS --norm final --out RUN"]


def verdict(names: Sequence[str], table: pd.DataFrame, differences: pd.DataFrame) -> Iterator[str]:
    """Yields what the runs' late shares say: of each run alone, then of each two neighbours in their order.

    Args:
        names: what the runs are called, in the order of `table`.
        table, differences: as in `Comparison`.
    """
    known = table[MAIN].notna()
    for name, (_, row) in zip(names, table.iterrows(), strict=True):
        if pd.notna(row[MAIN]):
            low, high = row[f"{MAIN}_low"], row[f"{MAIN}_high"]
            ends = "" if pd.isna(low) else f" ({_points(low)} to {_points(high)}%)"
            depth = "" if pd.isna(row["settle_depth"]) else f", and it falls under a tenth at {_points(row['settle_depth'])}% of the depth"
            yield f"{name}: {_points(row[MAIN])}%{ends} of the KL to the final policy is left at 90% of the depth{depth}"
    order = table.loc[known, MAIN].sort_values(ascending=False).index
    for late, early in pairwise(order):
        yield _pair(names[late], names[early], differences)


def _pair(late: str, early: str, differences: pd.DataFrame) -> str:
    rows = differences[differences["measure"].isin([MAIN, "settle_depth"])].set_index(["run", "other", "measure"])
    turned = (late, early, MAIN) not in rows.index
    key = (early, late) if turned else (late, early)

    def of(measure: str) -> tuple[float, float, float]:
        row = rows.loc[(*key, measure)]
        value, low, high = (float(row[name]) for name in ("difference", "difference_low", "difference_high"))
        return (-value, -high, -low) if turned else (value, low, high)

    value, low, high = of(MAIN)
    main = rows.loc[(*key, MAIN)]
    how = f"paired over {int(main['problems'])} problems" if bool(main["paired"]) else "of other problems, so not paired"
    if pd.isna(low):
        return f"{late} and {early} cannot be told apart: one sample has no interval (their shares differ by {_points(value)} points)"
    size = f"{_points(value)} points ({_points(low)} to {_points(high)}; {how})"
    if low <= 0 <= high:
        return f"{late} and {early} are not separated: what is left differs by {size}, an interval that contains 0"
    depth, depth_low, depth_high = of("settle_depth")
    later = f"{_points(abs(depth))}% of the depth {'later' if depth > 0 else 'earlier'} ({_points(depth_low)} to {_points(depth_high)}%)"
    clear = (
        "so both measures say the same"
        if depth_low > 0
        else "which says the opposite"
        if depth_high < 0
        else "which does not separate them"
    )
    by_depth = "" if pd.isna(depth) else f"; it falls under a tenth of its start {later}, {clear}"
    return f"{late} settles later than {early}: it has {size} more left{by_depth}"


def _points(value: float) -> str:
    """A share or a difference of shares in percent, with a decimal if it is small."""
    return f"{100 * value:.0f}" if abs(value) >= 0.1 else f"{100 * value:.1f}"
