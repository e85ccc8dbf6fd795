"""Problem sets by name: the public mathematics sets from a folder of the user's, the bundled arithmetic, or any prompt file."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from layerlens.errors import PromptError
from layerlens.prompts.arithmetic import problems
from layerlens.prompts.readers import READERS
from layerlens.storage.bundled import bundled_prompts

DATA_VARIABLE = "LAYERLENS_DATA"
"""The environment variable that names the folder of the public sets, where no option does."""

SAMPLES = 16
"""K where a set has no other, as in the paper."""

TASKS: dict[str, tuple[str, int]] = {
    "math500": ("math500.parquet", SAMPLES),
    "amc23": ("amc2023.parquet", SAMPLES),
    "aime24": ("aime_2024.parquet", 32),
    "aime25": ("aime_2025.parquet", 32),
}
"""Public sets: the file, in verl's layout, and the samples per problem that published results use."""


@dataclass(frozen=True)
class Task:
    """A set of problems.

    Attributes:
        name: in tables, figures and folders.
        source: what `read_prompts` reads.
        samples: K unless the user says.
        reward: the name of the reward that fits.
    """

    name: str
    source: str | Path | Sequence[dict[str, Any]]
    samples: int = SAMPLES
    reward: str = "math"


def find_task(spec: str, data: str | Path | None = None) -> Task:
    """The problems that `spec` names.

    `math500`, `amc23`, `aime24`, `aime25` (files in `data`, or in the folder that LAYERLENS_DATA names); `arithmetic` (the
    bundled problems) or `arithmetic:N` and `arithmetic:N:SEED` (N newly drawn held-out ones); a prompt file; or a hub dataset
    as owner/name.

    Raises PromptError where there is nothing of that name, saying what was expected.
    """
    if spec in TASKS:
        return _public(spec, data)
    drawn = re.fullmatch(r"arithmetic(?::([0-9]{1,6})(?::([0-9]{1,9}))?)?", spec)
    if drawn is not None:
        return _arithmetic(spec, *drawn.groups())
    path = Path(spec).expanduser()
    if path.is_file():
        return Task(path.stem, path)
    if path.suffix in READERS:
        raise PromptError(f"{spec}: no such prompt file")
    if re.fullmatch(r"[\w.-]+/[\w.-]+", spec):
        return Task(spec.replace("/", "--"), spec)
    raise PromptError(
        f"unknown task {spec!r}: choose from {', '.join(TASKS)}, arithmetic, arithmetic:N, a prompt file ({', '.join(READERS)}) or a "
        "hub dataset as owner/name"
    )


def _public(name: str, data: str | Path | None) -> Task:
    folder = data or os.environ.get(DATA_VARIABLE)
    file, samples = TASKS[name]
    if not folder:
        raise PromptError(f"{name} needs the file {file}: name its folder with --data DIR or {DATA_VARIABLE}")
    path = Path(folder).expanduser() / file
    if not path.is_file():
        raise PromptError(f"{name}: expected {path}, which is not there; name the folder of {file} with --data DIR or {DATA_VARIABLE}")
    return Task(name, path, samples)


def _arithmetic(spec: str, count: str | None, seed: str | None) -> Task:
    if count is None:
        return Task("arithmetic", bundled_prompts(), reward="arithmetic")
    if int(count) < 1:
        raise PromptError(f"{spec}: ask for at least 1 problem")
    drawn = problems("test", int(count), int(seed or 0), distinct=True)
    name = spec.replace(":", "-")
    rows = [{"id": f"{name}-{i:03d}", "prompt": list(problem.prompt), "ground_truth": problem.answer} for i, problem in enumerate(drawn)]
    return Task(name, rows, reward="arithmetic")
