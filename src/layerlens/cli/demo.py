"""`layerlens demo`: the whole path on the two bundled models, offline."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from layerlens.cli.figures import FigureOptions, draw_figures
from layerlens.cli.options import AsJson, print_json
from layerlens.storage.bundled import MODELS, bundled_prompts
from layerlens.storage.files import write_text

if TYPE_CHECKING:
    from layerlens.results import Run

SEED = 0
TOP_K = 5
"""Likely tokens that the report shows of every layer."""


def demo(
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder for runs, figures, report, table and choice.")] = Path("layerlens-demo"),
    samples: Annotated[int, typer.Option(help="How many of the bundled problems to answer and analyse.", min=1)] = 48,
    as_json: AsJson = False,
) -> None:
    """Analyse the two bundled models on held-out problems, draw every figure, compare them and choose a layer. Minutes, offline.

    Both models answer the same problems (sampled at temperature 1, seed 0) and are measured at every layer and site, with
    norm none (states as they are) and norm final (the logit lens). The choice is that of norm none, as in the paper; the comparison
    is that of norm final, which does not depend on scales that a model's function does not see.
    """
    import torch

    import layerlens as ll
    from layerlens.cli.tables import comparison_record, show_choice, show_comparison
    from layerlens.selection.comparison import compare_runs

    torch.set_num_threads(1)  # these models are so small that more threads only wait for each other
    runs, normed = [], []
    for name in MODELS:
        lens = ll.load(name, dtype="float32")
        prompts = ll.read_prompts(bundled_prompts(), lens, limit=samples)
        answers = ll.Generation(max_new_tokens=256, seed=SEED)
        run = ll.analyze(lens, prompts, generate=answers, top_k=TOP_K, out=out / "runs" / name)
        runs.append(run)
        normed.append(ll.analyze(lens, run, norm="final", out=out / "runs" / f"{name}-final"))
    figures, _ = draw_figures(runs, out / "figures", "all", FigureOptions())
    figures += draw_figures(normed, out / "figures" / "norm-final", "all", FigureOptions())[0]
    page = _report(runs, out / "report.html")
    comparison = compare_runs(normed)
    write_text(out / "comparison.csv", comparison.table.to_csv(index=False))
    choices = {run.model: ll.select_layer(run) for run in runs}
    plain = {name: choice.to_dict() for name, choice in choices.items()}
    write_text(out / "choice.json", json.dumps(plain, indent=2, ensure_ascii=False) + "\n")
    if as_json:
        files = {"figures": [str(path) for path in figures], "report": page}
        print_json({**files, "comparison": comparison_record(comparison), "choice": plain})
        return
    show_comparison(comparison)
    for choice in choices.values():
        print()
        show_choice(choice)
    print(f"\n{len(figures)} figures  {out / 'figures'}")
    print(f"report      {page}")
    print(f"comparison  {out / 'comparison.csv'}")
    print(f"choice      {out / 'choice.json'}")
    print(f"runs        {out / 'runs'}   (open one with layerlens.open_run)")


def _report(runs: Sequence[Run], file: Path) -> str:
    """Where the report is, or how to get one."""
    from layerlens.errors import LayerLensError
    from layerlens.report import write_report

    try:
        return str(write_report(runs, reward="arithmetic", out=file))
    except LayerLensError as error:
        return f"none: {error}"
