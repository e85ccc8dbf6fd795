"""`layerlens eval`: a model and problem sets to sampled answers, Avg@K and Pass@k."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from layerlens.cli.options import AsJson, ModelName, ModelOptions, PromptOptions, SamplingOptions, grouped, print_json
from layerlens.errors import SelectionError
from layerlens.types import EngineName, Norm

if TYPE_CHECKING:
    from layerlens.evaluate import Engine, Evaluation, Task
    from layerlens.prompts.sample import Sample

LONGEST_ANSWER = 8192
"""Tokens that an answer may have where neither the user nor the model's context says less."""


@grouped
def eval_command(
    model: ModelName,
    tasks: Annotated[
        str,
        typer.Option(
            help="Separated by commas: math500, amc23, aime24, aime25 (files of --data), arithmetic (bundled), arithmetic:N (N newly drawn "
            "ones), a prompt file with ground truths, or a hub dataset (owner/name).",
            rich_help_panel="Problems",
        ),
    ],
    out: Annotated[
        Path, typer.Option("--out", "-o", help="Folder for the answers, one folder per task. One that was stopped goes on where it was.")
    ],
    *,
    samples: Annotated[
        int | None,
        typer.Option(
            help="Answers per problem (K); more than last time adds to those that are there. [default: 32 for AIME, else 16]",
            min=1,
            show_default=False,
        ),
    ] = None,
    data: Annotated[
        Path | None,
        typer.Option(
            help="Folder of math500.parquet, amc2023.parquet, aime_2024.parquet, aime_2025.parquet in verl's layout. "
            "[default: $LAYERLENS_DATA]",
            rich_help_panel="Problems",
            show_default=False,
        ),
    ] = None,
    limit: Annotated[
        int | None, typer.Option(help="Only so many problems of each task, from the start.", min=1, rich_help_panel="Problems")
    ] = None,
    reading: Annotated[PromptOptions, "Problems"],
    reward: Annotated[
        str | None,
        typer.Option(
            help="How answers are checked: math (math-verify), boxed (exactly the same text), arithmetic, or module:function in TRL's "
            "signature. [default: arithmetic for arithmetic tasks, else math]",
            show_default=False,
            rich_help_panel="Problems",
        ),
    ] = None,
    max_new_tokens: Annotated[
        int | None,
        typer.Option(
            help=f"Longest answer, in tokens. [default: what the model's context leaves, {LONGEST_ANSWER} at most]",
            min=1,
            show_default=False,
            rich_help_panel="Answers",
        ),
    ] = None,
    sampling: Annotated[SamplingOptions, "Answers"],
    layer: Annotated[
        int | None,
        typer.Option(help="Answer from this layer's internal policy (1...L) instead of the model.", min=1, rich_help_panel="Answers"),
    ] = None,
    site: Annotated[str, typer.Option(help="Site of the internal policy.", rich_help_panel="Answers")] = "resid_post",
    norm: Annotated[
        Norm,
        typer.Option(
            help="Of the internal policy. none: states as they are (the BuPO paper); final: through the final norm (logit lens).",
            rich_help_panel="Answers",
        ),
    ] = "none",
    compare: Annotated[
        list[Path] | None,
        typer.Option(
            help="Also show an earlier evaluation (its --out folder), and the gain over it, paired by problem; may be repeated.",
            show_default=False,
        ),
    ] = None,
    figure: Annotated[bool, typer.Option("--figure/--no-figure", help="Draw Pass@k into the folder.")] = True,
    engine: Annotated[
        EngineName, typer.Option(help="auto takes vLLM where it is installed and there is a GPU.", rich_help_panel="Model")
    ] = "auto",
    loading: ModelOptions,
    tensor_parallel: Annotated[int, typer.Option(help="GPUs that vLLM spreads the model over.", min=1, rich_help_panel="Model")] = 1,
    batch_size: Annotated[
        int | None,
        typer.Option(help="Answers sampled at once. [default: 32; 1024 with vLLM]", min=1, show_default=False, rich_help_panel="Model"),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Sample many answers per problem, check them, and report Avg@K and Pass@k with intervals over problems.

    Example: layerlens eval Qwen/Qwen3-4B --tasks math500,aime24 --data data --no-thinking --out evals/qwen3-4b
    """
    from layerlens.evaluate import evaluate, find_task, open_engine, open_evaluation
    from layerlens.rewards.rewards import load_reward
    from layerlens.types import resolve_sites

    if layer is None and (site, norm) != ("resid_post", "none"):
        raise SelectionError("--site and --norm are of an internal policy: name its --layer as well")
    chosen = [find_task(name.strip(), data) for name in tasks.split(",") if name.strip()]
    _require_distinct(chosen, tasks)
    checks = [load_reward(reward or task.reward) for task in chosen]
    beside = {task.name: [open_evaluation(folder) for folder in _folders(compare or [], task.name)] for task in chosen}
    lens = open_engine(
        model,
        engine,
        layer=layer,
        site=resolve_sites(site)[0],
        norm=norm,
        **loading.keywords(),
        tensor_parallel=tensor_parallel,
    )
    read = [reading.read(task.source, lens, limit) for task in chosen]
    done, figures = [], []
    for task, problems, check in zip(chosen, read, checks, strict=True):
        longest = max_new_tokens or _room(lens, problems)
        found = evaluate(
            lens,
            problems,
            samples or task.samples,
            reward=check,
            generation=sampling.generation(longest),
            out=out / task.name,
            name=task.name,
            batch_size=batch_size,
        )
        done.append(found)
        _write_summary(found)
        if figure:
            figures.append(_draw([*beside[task.name], found], task.name, out))
    failed = _failed_checks(checks)
    if failed:
        print(f"not checked, scored 0: {failed}", file=sys.stderr)
    if as_json:
        told = [found.summary() | ({"gain_over": _gains(found, beside[found.task])} if compare else {}) for found in done]
        print_json({"tasks": told, "figures": [str(path) for path in figures]})
        return
    for found in done:
        _show([*beside[found.task], found])
    for path in figures:
        print(path)


def _require_distinct(tasks: Sequence[Task], given: str) -> None:
    names = [task.name for task in tasks]
    if not names or len(set(names)) < len(names):
        raise SelectionError(f"--tasks must name at least one set of problems, each once, got {given!r}")


def _folders(roots: Sequence[Path], task: str) -> list[Path]:
    """The evaluations of a task in earlier --out folders, or the folders themselves where they are one; at least one folder each."""
    return [root if (root / "eval.json").exists() else root / task for root in roots]


def _room(engine: Engine, problems: Sequence[Sample]) -> int:
    """Tokens that the model's context leaves for an answer to every problem."""
    if engine.context is None:
        return LONGEST_ANSWER
    return max(1, min(LONGEST_ANSWER, engine.context - max(sample.response_start for sample in problems)))


def _failed_checks(checks: Sequence[Any]) -> str:
    """How many answers no reward could stopping_verdict in this run, in words; empty where all were."""
    counts = {check.__name__: check.counts for check in checks if hasattr(check, "counts")}
    return "; ".join(
        f"{name} hung on {count.hung} and raised on {count.raised} of {count.answers} answers ({count.last_error})"
        for name, count in counts.items()
        if count.hung or count.raised
    )


def _gains(found: Evaluation, earlier: Sequence[Evaluation]) -> list[dict[str, Any]]:
    """What was gained over each earlier evaluation of the same problems."""
    from layerlens.evaluate.result import estimate

    return [
        {"model": each.label, "folder": str(each.path), **estimate(*found.gain_over(each))} for each in earlier if found.same_problems(each)
    ]


def _write_summary(found: Evaluation) -> None:
    from layerlens.storage.files import write_text

    assert found.path is not None
    write_text(found.path / "summary.json", json.dumps(found.summary(), indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def _draw(evaluations: Sequence[Evaluation], task: str, out: Path) -> Path:
    from layerlens import plots
    from layerlens.plots.passes import pass_curves

    return plots.save(pass_curves([found.pass_at().assign(task=task) for found in evaluations], task), out / f"{task}-pass.png")


def _show(evaluations: Sequence[Evaluation]) -> None:
    """One column per model, the new one last, one line per measure, in percent with intervals in brackets."""
    task, samples = evaluations[-1].task, max(found.n_samples for found in evaluations)
    table = Table(f"{task}, %", *(found.label for found in evaluations), box=None, pad_edge=False)
    table.add_row("problems", *(str(len(found.problems)) for found in evaluations))
    table.add_row("samples each", *(str(found.n_samples) for found in evaluations))
    table.add_row("Avg@K", *(_percent(*found.avg()) for found in evaluations))
    *earlier, last = evaluations
    paired = [last.same_problems(each) for each in earlier]
    if any(paired):
        gains = [_percent(*last.gain_over(each)) if same else "" for each, same in zip(earlier, paired, strict=True)]
        table.add_row("gain over it", *gains)
    passes = [found.pass_at().set_index("k") for found in evaluations]
    for k in (1 << power for power in range(1, samples.bit_length())):
        cells = [_percent(*rows.loc[k, ["mean", "low", "high"]]) if k in rows.index else "" for rows in passes]
        table.add_row(f"Pass@{k}", *cells)
    per_problem = [found.per_problem() for found in evaluations]
    table.add_row("ended by themselves", *(f"{100 * rows['finished'].mean():.1f}" for rows in per_problem))
    table.add_row("mean tokens", *(f"{rows['tokens'].mean():.0f}" for rows in per_problem))
    Console(highlight=False, soft_wrap=True).print(table)


def _percent(mean: Any, low: Any, high: Any) -> str:
    return f"{100 * mean:.1f}" if low != low else f"{100 * mean:.1f}  ({100 * low:.1f}, {100 * high:.1f})"
