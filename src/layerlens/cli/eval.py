"""`layerlens eval`: answers sampled from a model on one or more tasks, with their Avg@K and Pass@k."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from layerlens.cli.evaluation_table import show_evaluations, show_vote
from layerlens.cli.options import AsJson, LibraryOption, ModelName, ModelOptions, PromptOptions, SamplingOptions, grouped, print_json
from layerlens.errors import RunError, SelectionError
from layerlens.types import EngineName, ForwardNorm, resolve_sites

if TYPE_CHECKING:
    from layerlens.evaluate import DeepThinkingVote, Engine, Evaluation, Task
    from layerlens.prompts.sample import Sample

LONGEST_ANSWER = 8192
"""The most tokens an answer may have if neither the user nor the model's context sets a lower limit."""


@grouped
def eval_command(
    model: ModelName,
    tasks: Annotated[
        str,
        typer.Option(
            help="Sets of problems, separated by commas: math500, amc23, aime24, aime25 (public sets, from --data), arithmetic (64 bundled "
            "problems), arithmetic:N (N newly drawn ones), a prompt file with ground truths, or a hub dataset (owner/name).",
            rich_help_panel="Problems",
        ),
    ],
    out: Annotated[
        Path,
        typer.Option(
            "--out",
            "-o",
            help="Folder for the answers, with one folder per task. The same command continues an evaluation that was stopped.",
        ),
    ],
    *,
    answers: Annotated[
        int | None,
        typer.Option(
            help="Answers per problem (K). A larger number than in an earlier evaluation into --out adds to its answers. "
            "[default: 32 for AIME, else 16]",
            min=1,
            show_default=False,
        ),
    ] = None,
    samples: Annotated[int | None, typer.Option(help="The old name of --answers.", min=1, hidden=True)] = None,
    data: Annotated[
        Path | None,
        typer.Option(
            help="Folder of the public sets: math500.parquet, amc2023.parquet, aime_2024.parquet, aime_2025.parquet, in verl's layout. "
            "[default: $LAYERLENS_DATA]",
            rich_help_panel="Problems",
            show_default=False,
        ),
    ] = None,
    limit: Annotated[
        int | None, typer.Option(help="Evaluate on the first N problems of each task only.", min=1, metavar="N", rich_help_panel="Problems")
    ] = None,
    reading: Annotated[PromptOptions, "Problems"],
    reward: Annotated[
        str | None,
        typer.Option(
            help="How an answer is checked against the ground truth: math (equal as mathematics, by math-verify), boxed (the same text in "
            "the last box), arithmetic (the same integer in the last box), or a function of yours as module:function, in TRL's signature. "
            "[default: arithmetic for arithmetic tasks, else math]",
            show_default=False,
            rich_help_panel="Problems",
        ),
    ] = None,
    max_new_tokens: Annotated[
        int | None,
        typer.Option(
            help=f"Cut an answer after this many tokens. [default: what the model's context leaves, at most {LONGEST_ANSWER}]",
            min=1,
            show_default=False,
            rich_help_panel="Answers",
        ),
    ] = None,
    sampling: Annotated[SamplingOptions, "Answers"],
    layer: Annotated[
        str | None,
        typer.Option(
            help="Sample from the internal policy of this layer (1...L) instead of the final policy; or from layers together: mix:4,8,12 "
            "(equal weights), mix:4=0.2,12=0.8, or contrast:LATE,EARLY, such as contrast:12,4 (DoLa with a fixed early layer: add --norm "
            "final, under which the last layer is the model's own output).",
            rich_help_panel="Answers",
        ),
    ] = None,
    site: Annotated[
        str, typer.Option(help="With --layer: the site whose states the internal policy reads.", rich_help_panel="Answers")
    ] = "resid_post",
    norm: Annotated[
        ForwardNorm,
        typer.Option(
            help="With --layer: none reads the states as they are (the BuPO paper), final through the model's final norm (logit lens).",
            rich_help_panel="Answers",
        ),
    ] = "none",
    lens: Annotated[
        str,
        typer.Option(
            help="With --layer and --norm final: jacobian:FILE or tuned:FOLDER carries the states to the final layer; logit does not.",
            rich_help_panel="Answers",
        ),
    ] = "logit",
    compare: Annotated[
        list[Path] | None,
        typer.Option(
            help="The --out folder of an earlier evaluation, to show beside this one with the gain in Avg@K, paired by problem. May be "
            "given several times.",
            show_default=False,
        ),
    ] = None,
    select: Annotated[
        Literal["deep-thinking"] | None,
        typer.Option(
            help="Also vote: the most frequent boxed answer to each problem, of all answers and of the half that thinks deepest in its "
            "first 50 tokens (docs/definitions.md, Evaluation). Needs transformers, and the final policy.",
            show_default=False,
        ),
    ] = None,
    figure: Annotated[bool, typer.Option("--figure/--no-figure", help="Draw Pass@k over k into the folder.")] = True,
    engine: Annotated[
        EngineName,
        typer.Option(help="What runs the model; auto takes vLLM if it is installed and there is a GPU.", rich_help_panel="Model"),
    ] = "auto",
    loading: ModelOptions,
    library: LibraryOption = "transformers",
    tensor_parallel: Annotated[
        int, typer.Option(help="Number of GPUs that vLLM spreads the model over.", min=1, rich_help_panel="Model")
    ] = 1,
    batch_size: Annotated[
        int | None,
        typer.Option(help="Answers to sample at once. [default: 32; 1024 with vLLM]", min=1, show_default=False, rich_help_panel="Model"),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Measure how often a model solves problems: sample K answers to each, check them, and report Avg@K and Pass@k.

    Avg@K is the share of correct answers. Pass@k is the chance that at least one of k answers is correct (unbiased). Both are means over
    problems, with 95% intervals: for other problems like these, and for other answers to these very problems.

    Example: layerlens eval Qwen/Qwen3-4B --tasks math500,aime24 --data data --no-thinking --out evals/qwen3-4b
    """
    from layerlens.evaluate import LensEngine, evaluate, find_task, open_engine, open_evaluation, vote_by_deep_thinking
    from layerlens.rewards import load_reward

    if layer is None and (site, norm, lens) != ("resid_post", "none", "logit"):
        raise SelectionError("--site, --norm and --lens describe an internal policy: name its --layer as well")
    if answers is not None and samples is not None:
        raise SelectionError("--samples is the old name of --answers: give one of them")
    if select is not None and (answers or samples) == 1:
        raise SelectionError("--select votes among two or more answers to each problem: leave it out, or ask for more --answers")
    chosen = [find_task(name.strip(), data) for name in tasks.split(",") if name.strip()]
    _require_distinct(chosen, tasks)
    rewards = [load_reward(reward or task.reward) for task in chosen]
    earlier = {task.name: [open_evaluation(folder) for folder in _evaluation_folders(compare or [], task.name)] for task in chosen}
    reading.warn_of_training(model)
    model_engine = open_engine(
        model,
        engine,
        layer=layer,
        site=resolve_sites(site)[0],
        norm=norm,
        lens=lens,
        **loading.keywords(),
        tensor_parallel=tensor_parallel,
        library=library,
    )
    if select is not None and (layer is not None or not isinstance(model_engine, LensEngine)):
        raise SelectionError("--select reads the final policy's own layers: leave out --layer, and name --engine transformers")
    prompts = [reading.since(out / task.name / "eval.json").read(task.source, model_engine, limit) for task in chosen]
    evaluations, figures, votes = [], [], []
    for task, problems, check in zip(chosen, prompts, rewards, strict=True):
        evaluation = evaluate(
            model_engine,
            problems,
            answers or samples or task.answers,
            reward=check,
            generation=sampling.generation(max_new_tokens or _longest_answer(model_engine, problems)),
            out=out / task.name,
            name=task.name,
            batch_size=batch_size,
        )
        evaluations.append(evaluation)
        kept = _with_all_answers(evaluation)
        _write_summary(kept, None)  # before the vote, which may be stopped
        vote = None
        if select is not None and isinstance(model_engine, LensEngine):
            measured = out / f"{task.name}-deep-thinking-{evaluation.n_answers}"  # a run of so many answers, which cannot grow
            vote = vote_by_deep_thinking(evaluation, model_engine.model, problems, out=measured)
            _write_summary(kept, vote)
        votes.append(vote)
        if figure:
            figures.append(_draw([*earlier[task.name], kept], task.name, out))
    for each in evaluations:
        if each.unchecked:
            print(f"not checked, counted as wrong: {each.unchecked_text}; the same command checks them again", file=sys.stderr)
    if as_json:
        summaries = [
            _summary(each, vote) | ({"gain_over": _gains(each, earlier[each.task])} if compare else {})
            for each, vote in zip(evaluations, votes, strict=True)
        ]
        print_json({"tasks": summaries, "figures": [str(path) for path in figures]})
    else:
        for each, vote in zip(evaluations, votes, strict=True):
            show_evaluations([*earlier[each.task], each])
            if vote is not None:
                show_vote(vote)
        for path in figures:
            print(path)
    for each in evaluations:
        each.require_checked()


def _require_distinct(tasks: Sequence[Task], given: str) -> None:
    names = [task.name for task in tasks]
    if not names or len(set(names)) < len(names):
        raise SelectionError(f"--tasks must name at least one set of problems, each once, got {given!r}")


def _evaluation_folders(roots: Sequence[Path], task: str) -> list[Path]:
    """The folder of a task's evaluation for each earlier --out folder; a folder that is itself an evaluation stands for itself."""
    return [root if (root / "eval.json").exists() else root / task for root in roots]


def _longest_answer(engine: Engine, problems: Sequence[Sample]) -> int:
    """The most new tokens that the model's context leaves for an answer to every problem, at most `LONGEST_ANSWER`."""
    if engine.context is None:
        return LONGEST_ANSWER
    return max(1, min(LONGEST_ANSWER, engine.context - max(problem.response_start for problem in problems)))


def _with_all_answers(evaluation: Evaluation) -> Evaluation:
    """The evaluation with all answers in its folder, if fewer were asked for this time: what lies in the folder is of all of them."""
    from layerlens.evaluate import open_evaluation
    from layerlens.evaluate.folder import AnswerFolder

    assert evaluation.path is not None
    if AnswerFolder(evaluation.path).rounds()[-1] <= evaluation.n_answers:
        return evaluation
    try:
        problems = open_evaluation(evaluation.path).problems
    except RunError:  # some of the answers that were asked for earlier are still missing
        return evaluation
    return replace(evaluation, problems=problems)


def _gains(evaluation: Evaluation, earlier: Sequence[Evaluation]) -> list[dict[str, Any]]:
    """The gain in Avg@K over each earlier evaluation of the same problems, and what else than the models differs."""
    return [
        {"model": each.label, "folder": str(each.path), **evaluation.gain_over(each).to_json()}
        | _over_answers(evaluation, each)
        | {"sampled_otherwise": evaluation.sampled_otherwise(each, policies=False)}
        for each in earlier
        if evaluation.same_problems(each)
    ]


def _over_answers(evaluation: Evaluation, earlier: Evaluation) -> dict[str, Any]:
    """The interval of a gain for other answers to the same problems, as plain JSON values."""
    ends = evaluation.gain_over_answers(earlier).to_json()
    return {"answers_low": ends["low"], "answers_high": ends["high"]}


def _summary(evaluation: Evaluation, vote: DeepThinkingVote | None) -> dict[str, Any]:
    return evaluation.summary() | ({} if vote is None else {"deep_thinking_vote": vote.to_json()})


def _write_summary(evaluation: Evaluation, vote: DeepThinkingVote | None) -> None:
    from layerlens.storage.files import write_text

    assert evaluation.path is not None
    write_text(
        evaluation.path / "summary.json", json.dumps(_summary(evaluation, vote), indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    )


def _draw(evaluations: Sequence[Evaluation], task: str, out: Path) -> Path:
    from layerlens import plots

    return plots.save(plots.pass_curves([each.pass_at().assign(task=task) for each in evaluations], task), out / f"{task}-pass.png")
