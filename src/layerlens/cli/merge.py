"""`layerlens merge`: shards of a run to one run."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from layerlens.cli.options import AsJson, print_json


def merge_command(
    out: Annotated[Path, typer.Argument(metavar="OUT", help="Folder of the whole run: a new one, or one that is to get more shards.")],
    shards: Annotated[list[Path], typer.Argument(metavar="SHARD", help="Run folders, as `layerlens analyze --shard i/n --out` made them.")],
    as_json: AsJson = False,
) -> None:
    """Put the shards of one analysis together, after every file is compared with its digests.

    Example: layerlens merge runs/qwen3-4b runs/qwen3-4b-shard-*
    """
    import layerlens as ll

    run = ll.merge(out, shards)
    if as_json:
        print_json({"run": str(out), "model": run.model, "samples": run.n_samples, "of": run.manifest.samples.count})
        return
    print(f"{run.model}: {run.n_samples} of {run.manifest.samples.count} samples -> {out}")
    if run.complete:
        print(f"next: layerlens plot {out}   layerlens select {out}")
    else:
        print("next: the shards that are missing, and the same merge with them")
