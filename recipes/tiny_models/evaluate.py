"""Held-out accuracy of a bundled model: `python -m recipes.tiny_models.evaluate FOLDER`."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from rich.console import Console
from rich.progress import track
from rich.table import Table
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from layerlens.errors import LayerLensError, ModelLoadError
from layerlens.metrics.pass_at_k import pass_at_k
from layerlens.prompts.arithmetic.dataset import Problem, problems
from layerlens.rewards.boxed import verify
from recipes.tiny_models.card import write_card
from recipes.tiny_models.sampling import answers
from recipes.tiny_models.scores import bootstrap

PROMPTS_AT_ONCE = 16


@dataclass(frozen=True)
class EvaluationSettings:
    """What is measured: distinct problems of a held-out split, answered once greedily and `samples` times at T = 1."""

    split: str = "test"
    n: int = 256
    """Problems, spread evenly over kinds and difficulties."""
    samples: int = 16
    """Answers drawn per problem, at temperature 1 and top_p 1."""
    seed: int = 1
    """Seed of the problems, of the draws and of the bootstrap."""
    max_new_tokens: int = 320
    """An answer that is longer counts as it stands."""


@dataclass(frozen=True)
class Outcome:
    """One problem's result: is the greedy answer right, and how many of the sampled ones are."""

    kind: str
    difficulty: int
    greedy: bool
    right: int
    samples: int


def load(folder: Path) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Model and tokenizer of a folder, weights as stored but in float32; ModelLoadError where it is not a model folder."""
    if not (folder / "config.json").is_file():
        raise ModelLoadError(f"expected a model folder with config.json, got {folder}; make one with `python -m recipes.tiny_models.train`")
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, local_files_only=True).eval()
    return model, AutoTokenizer.from_pretrained(folder, local_files_only=True)


def outcomes(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    settings: EvaluationSettings,
    follow: Callable[[Sequence[list[Problem]]], Any] = lambda batches: batches,
) -> list[Outcome]:
    """Answer the held-out problems and verify; `follow` may wrap the batches to show progress."""
    chosen = problems(settings.split, settings.n, settings.seed, distinct=True)
    chosen.sort(key=lambda p: (p.difficulty, p.kind))
    generator = torch.Generator(model.device).manual_seed(settings.seed)
    found = []
    for batch in follow([chosen[i : i + PROMPTS_AT_ONCE] for i in range(0, len(chosen), PROMPTS_AT_ONCE)]):
        prompts = [p.prompt for p in batch]
        greedy = answers(model, tokenizer, prompts, 1, True, settings.max_new_tokens)
        sampled = answers(model, tokenizer, prompts, settings.samples, False, settings.max_new_tokens, generator)
        for problem, [best], drawn in zip(batch, greedy, sampled, strict=True):
            right = sum(verify(text, problem.answer) for text in drawn)
            found.append(Outcome(problem.kind, problem.difficulty, verify(best, problem.answer), right, len(drawn)))
    return found


def summarise(found: Sequence[Outcome], seed: int = 0) -> dict[str, Any]:
    """Greedy accuracy, Avg@K and Pass@K with intervals, over all problems and per kind and difficulty."""

    def scores(some: Sequence[Outcome]) -> dict[str, Any]:
        k = some[0].samples
        measured = {
            "greedy": [float(o.greedy) for o in some],
            f"avg@{k}": [o.right / k for o in some],
            f"pass@{k}": [pass_at_k(k, o.right, k) for o in some],
        }
        return {"problems": len(some)} | {name: asdict(bootstrap(values, seed)) for name, values in measured.items()}

    def by(field: str) -> dict[str, Any]:
        return {str(v): scores([o for o in found if getattr(o, field) == v]) for v in sorted({getattr(o, field) for o in found})}

    return scores(found) | {"by_kind": by("kind"), "by_difficulty": by("difficulty")}


def evaluate(folder: Path, settings: EvaluationSettings, progress: bool = False) -> dict[str, Any]:
    """Measure the model in a folder; the result is what `evaluation.json` holds."""
    model, tokenizer = load(folder)
    follow = (
        (lambda batches: track(batches, f"{folder.name}, held-out", console=Console(stderr=True))) if progress else lambda batches: batches
    )
    return {"model": folder.name, "settings": asdict(settings)} | summarise(outcomes(model, tokenizer, settings, follow), settings.seed)


def show(result: dict[str, Any], console: Console) -> None:
    """Print a result as a table, in percent with 95% intervals."""
    names = [name for name in result if name == "greedy" or "@" in name]
    table = Table("", "problems", *names, title=f"{result['model']}: right answers in percent, 95% interval over problems")
    for label, row in (("all", result), *result["by_kind"].items(), *((f"difficulty {d}", r) for d, r in result["by_difficulty"].items())):
        cells = [f"{100 * row[n]['mean']:.1f} [{100 * row[n]['low']:.1f}, {100 * row[n]['high']:.1f}]" for n in names]
        table.add_row(label, str(row["problems"]), *cells)
    console.print(table)


def main(
    folder: Annotated[Path, typer.Argument(help="Model folder, as written by the training.")],
    split: Annotated[str, typer.Option(help="validation or test.")] = EvaluationSettings.split,
    n: Annotated[int, typer.Option(help="Number of problems.")] = EvaluationSettings.n,
    samples: Annotated[int, typer.Option(help="Sampled answers per problem.")] = EvaluationSettings.samples,
    seed: Annotated[int, typer.Option(help="Seed of problems and samples.")] = EvaluationSettings.seed,
    threads: Annotated[int, typer.Option(help="CPU threads.")] = 1,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")] = False,
    write: Annotated[bool, typer.Option(help="Store the result in the folder's evaluation.json and model card.")] = False,
) -> None:
    """Greedy accuracy, Avg@K and unbiased Pass@K at temperature 1 on held-out problems."""
    torch.set_num_threads(threads)
    try:
        result = evaluate(folder, EvaluationSettings(split, n, samples, seed), progress=True)
    except LayerLensError as error:
        typer.echo(f"error: {error}", err=True)
        raise typer.Exit(2) from None
    if write:
        (folder / "evaluation.json").write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
        write_card(folder)
    if as_json:
        typer.echo(json.dumps(result))
    else:
        show(result, Console())


if __name__ == "__main__":
    typer.run(main)
