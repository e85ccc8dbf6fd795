"""`layerlens select`: from a run to the layer to train."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from layerlens.cli.options import AsJson, RowsOption, RuleOption, SegmentOption, Tolerance, WeightingOption, print_json


def select(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="A run folder, as `layerlens analyze --out` made it.")],
    rule: RuleOption = None,
    tolerance: Tolerance = 0.1,
    share: Annotated[
        float,
        typer.Option(
            help="Share of the tokens on which a layer must agree with the final policy (agreement), and of its skill (skill).",
            min=0.0,
            max=1.0,
        ),
    ] = 0.5,
    rows: RowsOption = "response",
    over: WeightingOption = "sample",
    segment: SegmentOption = None,
    as_json: AsJson = False,
) -> None:
    """Recommend the layer whose policy to train: why, how stable under resampling, what other rules say, what speaks against it.

    A layer is usable if its policy predicts the text better than guessing. If no rule names a usable layer in at least half of the
    resamples, the answer says so and what to do. The answer as JSON also holds the run and the fingerprint of its weights, and
    `layerlens train --internal_layer` takes the file.

    Example: layerlens select runs/qwen3-4b --json > choice.json
    """
    import layerlens as ll
    from layerlens.cli.tables import show_choice
    from layerlens.metrics import PhaseRule

    choice = ll.select_layer(ll.open_run(run), rule, phases=PhaseRule(tolerance), share=share, rows=rows, over=over, segment=segment)
    if as_json:
        print_json(choice.to_dict())
    else:
        show_choice(choice)
