"""`layerlens report`: runs and training folders to one interactive page."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from layerlens.cli.options import AsJson, RowsOption, SegmentOption, WeightingOption, print_json

ReportFolders = Annotated[
    list[Path] | None,
    typer.Argument(metavar="RUN", help="Run folders, as `layerlens analyze --out` made them. Training folders may stand here too."),
]
RewardOption = Annotated[
    str | None,
    typer.Option(help="Marks right and wrong answers: math, boxed, arithmetic or module:function.", show_default=False),
]


def report(
    runs: ReportFolders = None,
    training: Annotated[
        list[Path] | None,
        typer.Option("--training", "-t", help="Output folder of `layerlens train`; may be given several times.", show_default=False),
    ] = None,
    out: Annotated[Path, typer.Option("--out", "-o", help="The file to write.")] = Path("report.html"),
    rows: RowsOption = "response",
    over: WeightingOption = "sample",
    segment: SegmentOption = None,
    reward: RewardOption = None,
    megabytes: Annotated[
        float,
        typer.Option(help="Size of the file in 10^6 bytes; texts that do not fit are left out, and the page says which.", min=1.0),
    ] = 15.0,
    as_json: AsJson = False,
) -> None:
    """Write one interactive page of runs and trainings: figures, texts token by token, playback of training. It needs no network.

    The page shows the most likely tokens of every layer if the run kept them: `layerlens analyze ... --top-k 5`. It opens from disk in any
    browser, and its address keeps the view.

    Example: layerlens report runs/qwen3-4b runs/llama-8b --training bupo --out report.html
    """
    from layerlens.report import write_report

    shown, logs = opened(runs or (), training or ())
    options: dict[str, Any] = {"rows": rows, "over": over, "segment": segment, "reward": reward, "megabytes": megabytes}
    file = write_report(shown, logs, out=out, **options)
    size = file.stat().st_size
    if as_json:
        print_json({"report": str(file), "bytes": size})
    else:
        print(f"{file}  ({size / 1e6:.1f} MB; open it in a browser)")


def opened(runs: Sequence[Path], training: Sequence[Path]) -> tuple[list[Any], list[Any]]:
    """The runs and the trainings of folders; a training folder among `runs` counts as what it is."""
    import layerlens as ll
    from layerlens.results.training_log import is_training

    trained = [folder for folder in runs if is_training(folder)]
    return [ll.open_run(run) for run in runs if run not in trained], [ll.open_training(folder) for folder in [*trained, *training]]
