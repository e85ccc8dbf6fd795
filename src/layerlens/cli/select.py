"""`layerlens select`: from a run to the layer to train."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from layerlens.cli.options import AsJson, RowsOption, RuleOption, SegmentOption, Tolerance, WeightingOption, print_json
from layerlens.cli.tables import show_choice


def select(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="A run folder, as `layerlens analyze --out` made it.")],
    rule: RuleOption = "boundary",
    tolerance: Tolerance = 0.1,
    share: Annotated[
        float,
        typer.Option(
            help="With the agreement rule: share of the tokens on which a layer must agree with the final policy.", min=0.0, max=1.0
        ),
    ] = 0.5,
    rows: RowsOption = "response",
    over: WeightingOption = "sample",
    segment: SegmentOption = None,
    as_json: AsJson = False,
) -> None:
    """Choose the layer whose policy to train, with how often resamples of the data agree, and the runners-up.

    If the data show no such layer, the answer says so and why, and which layers the other rules choose. The answer as JSON also
    holds the run and the fingerprint of its weights, and `layerlens train --internal_layer` takes the file.

    Example: layerlens select runs/qwen3-4b --json > choice.json
    """
    import layerlens as ll
    from layerlens.metrics import PhaseRule

    choice = ll.select_layer(ll.open_run(run), rule, phases=PhaseRule(tolerance), share=share, rows=rows, over=over, segment=segment)
    if as_json:
        print_json(choice.to_dict())
    else:
        show_choice(choice)
