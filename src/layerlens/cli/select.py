"""`layerlens select`: a run to the layer to train."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from layerlens.cli.options import AsJson, RowsOption, RuleOption, Tolerance, WeightingOption, print_json
from layerlens.cli.tables import show_choice


def select(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="A run folder, as `layerlens analyze --out` made it.")],
    rule: RuleOption = "boundary",
    tolerance: Tolerance = 0.1,
    share: Annotated[float, typer.Option(help="Share of tokens that the agreement rule asks for.", min=0.0, max=1.0)] = 0.5,
    rows: RowsOption = "response",
    over: WeightingOption = "sample",
    as_json: AsJson = False,
) -> None:
    """Choose the layer whose policy to optimise, with how often resamples of the data agree, and the runners-up.

    Where the data show no such layer it says so and why, and what the other rules answer.

    Example: layerlens select runs/qwen3-4b
    """
    import layerlens as ll
    from layerlens.metrics import PhaseRule

    choice = ll.select_layer(ll.open_run(run), rule, phases=PhaseRule(tolerance), share=share, rows=rows, over=over)
    if as_json:
        print_json(choice.to_dict())
    else:
        show_choice(choice)
