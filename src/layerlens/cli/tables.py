"""Answers as tables for a terminal, and as records, a mapping a row, for scripts."""

from __future__ import annotations

from typing import Any

import pandas as pd
from rich.console import Console
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from layerlens.selection import LayerChoice
from layerlens.selection.comparison import Comparison, numbered
from layerlens.selection.measures import LABELS, PAPERS, SETTLING, measure_text
from layerlens.selection.recommendation import END, recommendation
from layerlens.selection.rules import LOOKS_FOR
from layerlens.selection.words import layer_ranges, percent

SHOWN = 0.05
"""Share of resamples from which an answer that is not the chosen one is shown."""


def records(table: pd.DataFrame) -> list[dict[str, Any]]:
    """Rows as plain values; what is missing becomes None."""
    plain = table.astype(object).where(table.notna(), None)
    return [{str(key): getattr(value, "item", lambda v=value: v)() for key, value in row.items()} for row in plain.to_dict("records")]


def comparison_record(found: Comparison) -> dict[str, Any]:
    """A comparison as plain values, ready for JSON."""
    return {
        "runs": records(found.table),
        "differences": records(found.differences),
        "verdict": list(found.verdict),
        "notes": list(found.notes),
    }


def show_comparison(found: Comparison) -> None:
    """One column per run, one line per measure, intervals in brackets; then the verdict and what to know of it."""
    table, console = found.table, _console()
    for text in found.notes:
        console.print(f"note: {text}")
    if found.notes:
        console.print()
    shown = Table("", *map(escape, numbered(table["model"])), box=None, pad_edge=False)
    shown.add_row("layers", *table["layers"].astype(str))
    shown.add_row("samples", *table["samples"].astype(str))
    shown.add_row("norm", *table["norm"])
    if table["usable_layers"].notna().any():
        shown.add_row("usable layers", *("unknown" if pd.isna(text) else str(text) for text in table["usable_layers"]))
    for title, names in (("how late it settles", SETTLING), ("the paper's measures", PAPERS)):
        if not table[list(names)].notna().any(axis=None):
            continue
        shown.add_row(f"[bold]{title}[/bold]")
        for name in names:
            cells = [measure_text(row, name) for _, row in table.iterrows()]
            shown.add_row(f"  {LABELS.get(name, name.replace('_', ' '))}", *cells)
    chosen = [
        "none" if pd.isna(row["chosen_layer"]) else f"{row['chosen_layer']:.0f}  ({row['rule']}{_frequency(row['chosen_frequency'])})"
        for _, row in table.iterrows()
    ]
    shown.add_row("recommended layer", *chosen)
    console.print(shown)
    for text in found.verdict:
        console.print(f"\n{text}" if text is found.verdict[0] else text)


def show_choice(choice: LayerChoice) -> None:
    """What each rule says, the phases and the usable layers, and at the end the recommendation."""
    console = _console()
    lens = "" if choice.lens == "logit" else f", {choice.lens} lens"
    console.print(f"[bold]{choice.model}[/bold], norm {choice.norm}{lens}, {choice.samples} samples, {choice.n_layers} layers")
    phases = [f"{name} {'-' if span is None else layer_ranges(range(span[0], span[1] + 1))}" for name, span in choice.phases.items()]
    if phases:
        doubt = "" if choice.diagnosis is None else " (of no meaning here: see diagnosis)"
        console.print(f"phases of the FFN's ΔS: {', '.join(phases)}{doubt}")
    if choice.usable is not None:
        console.print(f"usable layers (better than guessing): {layer_ranges(choice.usable)}")
    table = Table("rule", "layer", "of resamples", "looks for", box=None, pad_edge=False)
    share = percent(choice.settings["share"])
    for _, rows in choice.candidates.groupby("rule", sort=False):
        for row in rows[rows["chosen"] | (rows["frequency"] >= SHOWN)].itertuples():
            layer = "none" if pd.isna(row.layer) else str(row.layer)
            looks_for = f"{LOOKS_FOR[row.rule].format(share=share)}{f' (open: {END})' if row.open else ''}" if row.chosen else ""
            table.add_row(str(row.rule), layer, percent(float(row.frequency)), looks_for)
    console.print(table)
    console.print()
    for label, text in recommendation(choice):
        style = "bold" if label == "recommended" else None
        console.print(Text.assemble((f"{label:17} ", "bold"), (text, style or "")))


def _frequency(share: float) -> str:
    return "" if pd.isna(share) else f", {percent(share)} of resamples"


def _console() -> Console:
    return Console(highlight=False, soft_wrap=True)
