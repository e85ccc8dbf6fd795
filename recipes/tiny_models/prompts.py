"""The bundled prompts, held-out problems as JSON lines: `python -m recipes.tiny_models.prompts --write data/prompts/arithmetic.jsonl`."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from layerlens.errors import LayerLensError
from layerlens.prompts.arithmetic import Problem, problems


def write_problems(path: Path, chosen: Sequence[Problem], prefix: str = "arithmetic") -> None:
    """Writes problems as JSON lines with the fields id, prompt (chat messages), ground_truth, kind and difficulty."""
    rows = (
        {
            "id": f"{prefix}-{i:03d}",
            "prompt": list(problem.prompt),
            "ground_truth": problem.answer,
            "kind": problem.kind,
            "difficulty": problem.difficulty,
        }
        for i, problem in enumerate(chosen)
    )
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")


def main(
    write: Annotated[Path, typer.Option(help="JSON-lines file to write.")],
    split: Annotated[str, typer.Option(help="train, validation or test.")] = "test",
    n: Annotated[int, typer.Option(help="Number of problems.")] = 64,
    seed: Annotated[int, typer.Option(help="Seed of the problems.")] = 64,
) -> None:
    """Write distinct problems of a split as JSON lines."""
    try:
        write_problems(write, problems(split, n, seed, distinct=True))
    except LayerLensError as error:
        typer.echo(f"error: {error}", err=True)
        raise typer.Exit(2) from None


if __name__ == "__main__":
    typer.run(main)
