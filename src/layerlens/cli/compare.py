"""`layerlens compare`: runs to a table."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from layerlens.cli.options import AsJson, RowsOption, RuleOption, RunFolders, SegmentOption, Tolerance, WeightingOption, print_json
from layerlens.cli.tables import records, show_comparison
from layerlens.storage.files import write_text


def compare_command(
    runs: RunFolders,
    out: Annotated[Path | None, typer.Option("--out", "-o", help="Also write the table here, as CSV.")] = None,
    rule: RuleOption = "boundary",
    tolerance: Tolerance = 0.1,
    rows: RowsOption = "response",
    over: WeightingOption = "sample",
    segment: SegmentOption = None,
    as_json: AsJson = False,
) -> None:
    """Compare how models converge: one row per run, every number with its 95% bootstrap interval over samples.

    convergence layer: first layer from which mean entropy stays under 10% of its maximum. abruptness: share of the entropy drop
    in the last three layers. effective depth: area under the entropy curve over its maximum, as a share of the layers. exploration
    and integration end: last layers of these phases of the FFN's entropy change. chosen layer: what `layerlens select` answers.

    Example: layerlens compare runs/qwen3-4b runs/llama-8b --out comparison.csv
    """
    import layerlens as ll
    from layerlens.metrics import PhaseRule

    table = ll.compare([ll.open_run(run) for run in runs], rule=rule, phases=PhaseRule(tolerance), rows=rows, over=over, segment=segment)
    if out is not None:
        write_text(out, table.to_csv(index=False))
    if as_json:
        print_json(records(table))
    else:
        show_comparison(table)
