"""Problems of the study: `python -m benchmarks.study.problems --split test --problems 512 --seed 101 --out held-out.jsonl`.

Evenly over kinds and difficulties, no two of one kind and difficulty alike, as far as there are so many; ordered by difficulty and kind,
so that answers of like lengths share a batch.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

from layerlens.prompts.arithmetic.dataset import KINDS, SPLITS, Problem, ProblemError, problems
from layerlens.prompts.arithmetic.kinds import DIFFICULTIES
from layerlens.storage.files import write_text


def draw(split: str, count: int, seed: int, difficulties: Sequence[int] = DIFFICULTIES) -> list[Problem]:
    """At most `count` problems; a kind and difficulty with too few distinct ones gives what it has."""
    cells = [(kind, difficulty) for difficulty in difficulties for kind in KINDS]
    return [problem for kind, difficulty in cells for problem in _of_cell(split, count // len(cells), seed, kind, difficulty)]


def _of_cell(split: str, count: int, seed: int, kind: str, difficulty: int) -> list[Problem]:
    found: list[Problem] = []
    asked = count
    while count > len(found):  # the first problems of a draw do not depend on how many are drawn
        try:
            found = problems(split, asked, seed, [kind], [difficulty], distinct=True)
        except ProblemError:
            count = asked - 1
        asked = (count + len(found) + 1) // 2
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--split", choices=SPLITS, required=True)
    parser.add_argument("--difficulties", type=int, nargs="+", default=DIFFICULTIES)
    parser.add_argument("--problems", type=int, required=True)
    parser.add_argument("--seed", type=int, required=True)
    parser.add_argument("--out", type=Path, required=True)
    given = parser.parse_args()
    rows = [
        {"id": f"{given.split}-{i:04d}", "prompt": list(problem.prompt), "ground_truth": problem.answer}
        for i, problem in enumerate(draw(given.split, given.problems, given.seed, given.difficulties))
    ]
    write_text(given.out, "".join(json.dumps(row) + "\n" for row in rows))
    print(f"{len(rows)} problems -> {given.out}")


if __name__ == "__main__":
    main()
