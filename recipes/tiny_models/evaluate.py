"""Held-out accuracy of a bundled model: `python -m recipes.tiny_models.evaluate FOLDER`."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer
from jaxtyping import Bool
from rich.console import Console
from rich.table import Table

import layerlens as ll
from layerlens.errors import LayerLensError
from layerlens.evaluate import avg_at_k, evaluate, pass_at_k
from layerlens.evaluate.scores import estimate_mean
from layerlens.prompts.arithmetic import Problem, problems
from layerlens.rewards import arithmetic_reward
from recipes.tiny_models.card import accuracy_rows, write_card

Array = np.ndarray


@dataclass(frozen=True)
class EvaluationSettings:
    """What is measured: distinct problems of a held-out split, each answered once greedily and `answers` times at T = 1 and top_p = 1."""

    split: str = "test"
    n: int = 256
    """Problems, spread evenly over kinds and difficulties."""
    answers: int = 16
    """Sampled answers per problem, K."""
    seed: int = 1
    """Seed of the problems and of the sampled answers."""
    max_new_tokens: int = 320
    """The most tokens of an answer; a longer answer is cut and checked as it stands."""


def evaluate_folder(folder: Path, settings: EvaluationSettings) -> dict[str, Any]:
    """Measures the model in a folder, its weights read in float32. The result is what `evaluation.json` holds.

    Raises ModelLoadError if the folder holds no model, ProblemError if there are fewer distinct problems than asked for.
    """
    model = ll.load(folder, dtype="float32")
    chosen = problems(settings.split, settings.n, settings.seed, distinct=True)
    prompts = ll.read_prompts([{"prompt": list(problem.prompt), "ground_truth": problem.answer} for problem in chosen], model)
    likeliest = ll.Generation(settings.max_new_tokens, temperature=0.0)
    drawn = ll.Generation(settings.max_new_tokens, seed=settings.seed)
    greedy = evaluate(model, prompts, 1, reward=arithmetic_reward, generation=likeliest, name="greedy answers")
    sampled = evaluate(model, prompts, settings.answers, reward=arithmetic_reward, generation=drawn, name="sampled answers")
    return {"model": folder.name, "settings": asdict(settings)} | summarise(chosen, greedy.correct, sampled.correct)


def summarise(
    chosen: Sequence[Problem], greedy: Bool[Array, "problems 1"], sampled: Bool[Array, "problems answers"]
) -> dict[str, dict[str, Any] | int]:
    """Greedy accuracy, Avg@K and Pass@K with their intervals, over all problems, per kind and per difficulty.

    `greedy` and `sampled` say which answers to the problems `chosen` are correct.
    """
    k = sampled.shape[1]
    measured = {"greedy": avg_at_k(greedy), f"avg@{k}": avg_at_k(sampled), f"pass@{k}": np.asarray(pass_at_k(k, sampled.sum(1), k))}

    def estimates(members: Bool[Array, " problems"]) -> dict[str, Any]:
        return {"problems": int(members.sum())} | {name: estimate_mean(values[members]).to_json() for name, values in measured.items()}

    def by(field: str) -> dict[str, Any]:
        labels = np.array([getattr(problem, field) for problem in chosen])
        return {str(label): estimates(labels == label) for label in np.unique(labels)}

    return estimates(np.ones(len(chosen), bool)) | {"by_kind": by("kind"), "by_difficulty": by("difficulty")}


def write_evaluation(folder: Path, result: dict[str, Any]) -> None:
    """Stores a result as the folder's `evaluation.json` and writes the model card anew."""
    (folder / "evaluation.json").write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    write_card(folder)


def print_accuracy(result: dict[str, Any], console: Console) -> None:
    """Prints a result as a table, in percent with 95% intervals."""
    names, rows = accuracy_rows(result)
    table = Table(
        "",
        "problems",
        *names,
        title=f"{result['model']}: correct answers in percent, 95% interval over problems (*: bounds, as all are alike)",
    )
    for row in rows:
        table.add_row(*row)
    console.print(table)


def main(
    folder: Annotated[Path, typer.Argument(help="Model folder, as the training writes it.")],
    split: Annotated[str, typer.Option(help="validation or test.")] = EvaluationSettings.split,
    n: Annotated[int, typer.Option(help="Number of problems.")] = EvaluationSettings.n,
    answers: Annotated[int, typer.Option(help="Sampled answers per problem.")] = EvaluationSettings.answers,
    seed: Annotated[int, typer.Option(help="Seed of problems and sampled answers.")] = EvaluationSettings.seed,
    threads: Annotated[int, typer.Option(help="CPU threads.")] = 1,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")] = False,
    write: Annotated[bool, typer.Option("--write", help="Store the result in the folder's evaluation.json and model card.")] = False,
) -> None:
    """Measure greedy accuracy, Avg@K and unbiased Pass@K on held-out problems."""
    torch.set_num_threads(threads)
    try:
        result = evaluate_folder(folder, EvaluationSettings(split, n, answers, seed))
    except LayerLensError as error:
        typer.echo(f"error: {error}", err=True)
        raise typer.Exit(2) from None
    if write:
        write_evaluation(folder, result)
    if as_json:
        typer.echo(json.dumps(result))
    else:
        print_accuracy(result, Console())


if __name__ == "__main__":
    typer.run(main)
