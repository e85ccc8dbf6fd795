"""`layerlens compare`: runs to a table."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from layerlens.cli.options import AsJson, RowsOption, RuleOption, RunFolders, SegmentOption, Tolerance, WeightingOption, print_json
from layerlens.storage.files import write_text


def compare_command(
    runs: RunFolders,
    out: Annotated[Path | None, typer.Option("--out", "-o", help="Also write the table here, as CSV.")] = None,
    rule: RuleOption = None,
    tolerance: Tolerance = 0.1,
    rows: RowsOption = "response",
    over: WeightingOption = "sample",
    segment: SegmentOption = None,
    as_json: AsJson = False,
) -> None:
    """Compare how late models settle on their final policy, with 95% bootstrap intervals over samples and a verdict in a sentence.

    KL left at 90% of depth: the KL to the final policy that is still to come there, as a share of its start; under a tenth at l / L:
    the relative depth from which it stays below. The same of the tokens on which the policies disagree. Both need runs of norm
    final. The paper's measures are of entropies, the embedding included: convergence layer (from which mean entropy stays under 10% of its
    maximum), abruptness (share of the drop in the last three layers), effective depth (area under the curve over its maximum), and
    the last layers of exploration and integration. Runs of the same problems are compared in pairs.

    Example: layerlens compare runs/qwen3-4b-final runs/llama-8b-final --out comparison.csv
    """
    import layerlens as ll
    from layerlens.cli.tables import comparison_record, show_comparison
    from layerlens.metrics import PhaseRule
    from layerlens.selection.comparison import compare_runs

    found = compare_runs([ll.open_run(run) for run in runs], rule=rule, phases=PhaseRule(tolerance), rows=rows, over=over, segment=segment)
    if out is not None:
        write_text(out, found.table.to_csv(index=False))
    if as_json:
        print_json(comparison_record(found))
    else:
        show_comparison(found)
