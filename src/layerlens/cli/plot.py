"""`layerlens plot`: runs to figures."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from layerlens.cli.figures import ALL_RUNS, FORMATS, ONE_RUN, TWO_RUNS, FigureOptions, draw_figures, draw_training
from layerlens.cli.options import AsJson, RowsOption, RunFolders, SegmentOption, WeightingOption, parse_names, print_json
from layerlens.errors import SelectionError

if TYPE_CHECKING:
    from layerlens.results import Run

KINDS = f"{', '.join(ONE_RUN)}; for several runs: {', '.join(ALL_RUNS)}; of two runs of one model: {', '.join(TWO_RUNS)}"


def plot(
    runs: RunFolders,
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder for the figures.")] = Path("figures"),
    kind: Annotated[
        str,
        typer.Option(
            help=f"all, or some of these, separated by commas: {KINDS}. all leaves {', '.join(TWO_RUNS)} out, and "
            "those of settling and deep thinking unless the run and --reward provide for them."
        ),
    ] = "all",
    sample: Annotated[
        str | None,
        typer.Option(help="Which sample the figures of one sample show, by id or number. [default: the first]", show_default=False),
    ] = None,
    site: Annotated[str, typer.Option(help="Which site the token heatmap and the curves show.")] = "resid_post",
    form: Annotated[str, typer.Option("--format", help=f"Format of the files: {', '.join(FORMATS)}.")] = "png",
    rows: RowsOption = "response",
    over: WeightingOption = "sample",
    segment: SegmentOption = None,
    reward: Annotated[
        str | None,
        typer.Option(
            help="Tells right responses from wrong ones, for settling-right-wrong and deep-thinking: math, boxed, arithmetic, "
            "module:function, or recorded (what the prompts file said).",
            show_default=False,
        ),
    ] = None,
    with_data: Annotated[bool, typer.Option("--with-data", help="Also write the numbers of each figure beside it, as CSV.")] = False,
    as_json: AsJson = False,
) -> None:
    """Draw a run's figures: heatmaps, entropy flow, entropy change with phases, similarity, and comparisons of several runs.

    RUN may also be an output folder of `layerlens train`: the figures then show what training did inside the model, and only --out,
    --format, --with-data and --json apply.

    Example: layerlens plot runs/qwen3-4b runs/llama-8b --out figures
    """
    import layerlens as ll
    from layerlens.results.correctness import require_reward
    from layerlens.results.training_log import is_training

    trained = [run for run in runs if is_training(run)]
    if trained:
        if len(trained) < len(runs):
            raise SelectionError("training folders and run folders cannot share a figure; plot them in two calls")
        if (kind, sample, FigureOptions(site=site, rows=rows, over=over, segment=segment, reward=reward)) != ("all", None, FigureOptions()):
            raise SelectionError(
                "--kind, --sample, --site, --rows, --over, --segment and --reward are for runs; leave them out for training folders"
            )
        _tell(*draw_training([ll.open_training(folder) for folder in trained], out, form, with_data=with_data), as_json)
        return
    if reward is not None:
        require_reward(reward)
    opened = [ll.open_run(run) for run in runs]
    which: int | str | None = sample
    if sample is not None and re.fullmatch("-?[0-9]{1,9}", sample) and sample not in opened[0].data["sample_id"].values:
        which = int(sample)
    for run in opened:
        _require_drawable(run, which, site)
    written, skipped = draw_figures(
        opened, out, parse_names(kind), FigureOptions(which, site, rows, over, segment, reward), form, with_data=with_data
    )
    _tell(written, skipped, as_json)


def _require_drawable(run: Run, sample: int | str | None, site: str) -> None:
    """Raises SelectionError if a run has no such sample or site: figures that do not need them would be drawn all the same."""
    ids, numbers = (run.data[name].values.tolist() for name in ("sample_id", "sample_index"))
    if sample is not None and sample not in (ids if isinstance(sample, str) else numbers):
        raise SelectionError(f"no sample {sample!r}; there are {', '.join(map(str, ids[:8]))}{', ...' if len(ids) > 8 else ''}")
    if site not in run.sites and site != FigureOptions().site:
        raise SelectionError(f"the run of {run.model} has no site {site!r}; it has {', '.join(run.sites)}")


def _tell(written: list[Path], skipped: list[str], as_json: bool) -> None:
    if as_json:
        print_json({"figures": [str(path) for path in written], "skipped": skipped})
        return
    for path in written:
        print(path)
    for reason in skipped:
        print(f"not drawn: {reason}", file=sys.stderr)
