"""Tasks, the sets of problems of `layerlens eval --tasks`: public mathematics sets, generated arithmetic, prompt files, hub datasets."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from layerlens.errors import PromptError
from layerlens.prompts.arithmetic import problems
from layerlens.prompts.records import FILE_READERS
from layerlens.storage.bundled import bundled_prompts

DATA_VARIABLE = "LAYERLENS_DATA"
"""The environment variable that names the folder of the public sets if no option does."""

ANSWERS = 16
"""Answers per problem, K, unless the task says otherwise: Avg@16 as in the BuPO paper (arXiv 2512.19673)."""

TASKS: dict[str, tuple[str, int]] = {
    "math500": ("math500.parquet", ANSWERS),
    "amc23": ("amc2023.parquet", ANSWERS),
    "aime24": ("aime_2024.parquet", 32),
    "aime25": ("aime_2025.parquet", 32),
}
"""The public sets by name: each one's parquet file, in verl's layout, and the answers per problem (K) of the BuPO paper's results."""


@dataclass(frozen=True)
class Task:
    """A set of problems to evaluate a model on.

    Attributes:
        name: in tables, figures and folder names.
        source: where the problems are, as `read_prompts` takes it.
        answers: how many to each problem, K, unless the user gives another number.
        reward: the name of the reward that checks the answers unless the user names another.
    """

    name: str
    source: str | Path | Sequence[dict[str, Any]]
    answers: int = ANSWERS
    reward: str = "math"


def find_task(spec: str, data: str | Path | None = None) -> Task:
    """The task that `spec` names.

    Args:
        spec: one of
            - `math500`, `amc23`, `aime24`, `aime25`: a public set, whose file is in the folder `data`;
            - `arithmetic`: the bundled problems; `arithmetic:N` or `arithmetic:N:SEED`: N distinct held-out problems, newly drawn;
            - the path of a prompt file with ground truths;
            - a hub dataset as owner/name.
        data: the folder of the public sets; by default the folder that the environment variable LAYERLENS_DATA names.

    Raises PromptError if there is no such task, or the file of a public set is missing.
    """
    if spec in TASKS:
        return _public_set(spec, data)
    arithmetic = re.fullmatch(r"arithmetic(?::([0-9]{1,6})(?::([0-9]{1,9}))?)?", spec)
    if arithmetic is not None:
        return _arithmetic(spec, *arithmetic.groups())
    path = Path(spec).expanduser()
    if path.is_file():
        return Task(path.stem, path)
    if path.suffix in FILE_READERS:
        raise PromptError(f"{spec}: no such prompt file; give the path of one, or a task by name ({', '.join(TASKS)}, arithmetic)")
    if re.fullmatch(r"[\w.-]+/[\w.-]+", spec):
        return Task(spec.replace("/", "--"), spec)
    raise PromptError(
        f"unknown task {spec!r}: choose from {', '.join(TASKS)}, arithmetic, arithmetic:N, a prompt file ({', '.join(FILE_READERS)}) or a "
        "hub dataset as owner/name"
    )


def _public_set(name: str, data: str | Path | None) -> Task:
    folder = data or os.environ.get(DATA_VARIABLE)
    file, answers = TASKS[name]
    if not folder:
        raise PromptError(f"{name} needs the file {file}: name its folder with --data DIR or {DATA_VARIABLE}")
    path = Path(folder).expanduser() / file
    if not path.is_file():
        raise PromptError(f"{name}: expected {path}, which is not there; name the folder of {file} with --data DIR or {DATA_VARIABLE}")
    return Task(name, path, answers)


def _arithmetic(spec: str, count: str | None, seed: str | None) -> Task:
    if count is None:
        return Task("arithmetic", bundled_prompts(), reward="arithmetic")
    if int(count) < 1:
        raise PromptError(f"{spec}: ask for at least 1 problem")
    drawn = problems("test", int(count), int(seed or 0), distinct=True)
    name = spec.replace(":", "-")
    rows = [{"id": f"{name}-{i:03d}", "prompt": list(problem.prompt), "ground_truth": problem.answer} for i, problem in enumerate(drawn)]
    return Task(name, rows, reward="arithmetic")
