"""Answers as tables for a terminal, and as records, a mapping a row, for scripts."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pandas as pd
from rich.console import Console
from rich.table import Table

if TYPE_CHECKING:
    from layerlens.selection.layer import LayerChoice


def records(table: pd.DataFrame) -> list[dict[str, Any]]:
    """Rows as plain values; what is missing becomes None."""
    plain = table.astype(object).where(table.notna(), None)
    return [{str(key): getattr(value, "item", lambda v=value: v)() for key, value in row.items()} for row in plain.to_dict("records")]


def show_comparison(table: pd.DataFrame) -> None:
    """One column per run, one line per measure, intervals in brackets."""
    shown = Table("", *(f"{row['model']}" for _, row in table.iterrows()), box=None, pad_edge=False)
    shown.add_row("layers", *table["layers"].astype(str))
    shown.add_row("samples", *table["samples"].astype(str))
    shown.add_row("norm", *table["norm"])
    measures = [str(name) for name in table.columns if f"{name}_low" in table.columns]
    for name in measures:
        cells = [_number(row[name], row[f"{name}_low"], row[f"{name}_high"], row[f"{name}_exists"]) for _, row in table.iterrows()]
        shown.add_row(name.replace("_", " "), *cells)
    chosen = [
        "none" if pd.isna(row["chosen_layer"]) else f"{row['chosen_layer']:.0f}" + _frequency(row["chosen_frequency"])
        for _, row in table.iterrows()
    ]
    shown.add_row(f"chosen layer ({table['rule'].iloc[0]})", *chosen)
    _console().print(shown)


def show_choice(choice: LayerChoice) -> None:
    """The answer, the phases, and what else the data would say."""
    console = _console()
    lens = "" if choice.lens == "logit" else f", {choice.lens} lens"
    console.print(f"[bold]{choice.model}[/bold], norm {choice.norm}{lens}, {choice.samples} samples", highlight=False)
    console.print(choice.reason, highlight=False, style="bold")
    for name, span in choice.phases.items():
        console.print(f"  {name:12} {'-' if span is None else f'layers {span[0]}-{span[1]}'}", highlight=False)
    table = Table("rule", "layer", "of resamples", "", box=None, pad_edge=False)
    for row in choice.candidates.itertuples():
        layer = "none" if pd.isna(row.layer) else str(row.layer)
        table.add_row(str(row.rule), layer, _share(row.frequency), "on all samples" if row.chosen else "")
    console.print(table)


def _number(value: float, low: float, high: float, exists: float) -> str:
    """A measure with its interval; if it does not exist in every resample, with the share of resamples in which it does."""
    share = f"; exists in {_share(exists)} of resamples" if exists < 1 else ""
    if pd.isna(value):
        return "none" if not exists > 0 else f"none  (else {low:.3g} to {high:.3g}{share})" if low == low else f"none{share}"
    return f"{value:.3g}" if pd.isna(low) else f"{value:.3g}  ({low:.3g} to {high:.3g}{share})"


def _share(share: float) -> str:
    if pd.isna(share):
        return "-"
    return "<1%" if 0 < share < 0.005 else f"{share:.0%}"


def _frequency(share: float) -> str:
    return "" if pd.isna(share) else f"  ({share:.0%} of resamples)"


def _console() -> Console:
    return Console(highlight=False, soft_wrap=True)
