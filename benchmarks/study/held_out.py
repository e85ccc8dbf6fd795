"""The held-out problems of the study: `python -m benchmarks.study.held_out --problems 512 --seed 101 --out held-out.jsonl`.

All distinct and from the test split, evenly over kinds and difficulties as far as there are so many, and ordered by difficulty and kind:
answers of like lengths then share a batch, which halves the time of sampling.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from layerlens.prompts.arithmetic.dataset import KINDS, Problem, ProblemError, problems
from layerlens.prompts.arithmetic.kinds import DIFFICULTIES
from layerlens.storage.files import write_text


def draw(count: int, seed: int) -> list[Problem]:
    """At most `count` problems; a kind and difficulty with too few distinct ones gives what it has."""
    cells = [(kind, difficulty) for difficulty in DIFFICULTIES for kind in KINDS]
    return [problem for kind, difficulty in cells for problem in _of_cell(count // len(cells), seed, kind, difficulty)]


def _of_cell(count: int, seed: int, kind: str, difficulty: int) -> list[Problem]:
    for fewer in range(count, 0, -1):
        try:
            return problems("test", fewer, seed, [kind], [difficulty], distinct=True)
        except ProblemError:
            continue
    return []


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--problems", type=int, required=True)
    parser.add_argument("--seed", type=int, required=True)
    parser.add_argument("--out", type=Path, required=True)
    given = parser.parse_args()
    rows = [
        {"id": f"held-out-{i:04d}", "prompt": list(problem.prompt), "ground_truth": problem.answer}
        for i, problem in enumerate(draw(given.problems, given.seed))
    ]
    write_text(given.out, "".join(json.dumps(row) + "\n" for row in rows))
    print(f"{len(rows)} problems -> {given.out}")


if __name__ == "__main__":
    main()
