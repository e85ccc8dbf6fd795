"""An evaluation on disk: eval.json, the problems, and one file of answers per problem, each written whole or not at all.

```
eval.json             what was run on what; a folder holds one configuration
problems.jsonl        id, ground_truth and prompt text of each problem
rounds.json           the numbers of samples that were asked for, growing
answers/000000.jsonl  the answers to the first problem, one JSON object a line: sample, text, tokens, finished, score
```
Processes that fill one folder claim groups of problems by file locks, which end with the process.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import Any

from filelock import FileLock

from layerlens.errors import RunError
from layerlens.evaluate.result import Answer
from layerlens.storage.files import claim, remove_stale_temporaries, write_text
from layerlens.storage.manifest import FORMAT, require_same

MANIFEST, PROBLEMS, ROUNDS, ANSWERS, LOCKS = "eval.json", "problems.jsonl", "rounds.json", "answers", ".locks"


class MemoryStore:
    """Answers that are kept nowhere else."""

    path: Path | None = None

    def __init__(self) -> None:
        self._answers: dict[int, dict[int, Answer]] = {}

    def read(self, problem: int) -> dict[int, Answer]:
        """The answers to a problem, by sample number."""
        return dict(self._answers.get(problem, {}))

    def write(self, problem: int, answers: Mapping[int, Answer]) -> None:
        """Keeps answers beside those that are there; what is there stays."""
        self._answers[problem] = {**answers, **self._answers.get(problem, {})}

    def plan(self, samples: int, problems: int) -> list[int]:
        """The rounds to work through: how many samples each problem has after each of them."""
        return [samples]

    def claim(self, name: str) -> AbstractContextManager[bool]:
        """Whether nobody else does this part."""
        return nullcontext(True)


class AnswerFolder(MemoryStore):
    """Answers in a folder. Make one with `create` to write, or with the path of an existing one to read."""

    path: Path

    def __init__(self, path: str | Path):
        super().__init__()
        self.path = Path(path).expanduser()

    @classmethod
    def create(cls, path: str | Path, manifest: Mapping[str, Any], problems: Sequence[Mapping[str, Any]]) -> AnswerFolder:
        """Opens a folder for writing: a new one, or one that the same configuration has begun to fill.

        Raises RunError where the folder belongs to another configuration or holds something else.
        """
        folder = cls(path)
        known = {MANIFEST, PROBLEMS, ROUNDS, ANSWERS, LOCKS}
        if folder.path.is_dir() and not (folder.path / MANIFEST).exists():
            strange = [file.name for file in folder.path.iterdir() if file.name not in known and not file.name.endswith(".tmp")]
            if strange:
                raise RunError(f"{folder.path} is not empty and holds no evaluation ({strange[0]}); choose another folder")
        (folder.path / LOCKS).mkdir(parents=True, exist_ok=True)
        remove_stale_temporaries(folder.path)
        with FileLock(folder.path / LOCKS / "manifest"):
            if (folder.path / MANIFEST).exists():
                require_same(manifest, folder.manifest(), str(folder.path))
            else:
                write_text(folder.path / PROBLEMS, _lines(problems))
                write_text(folder.path / MANIFEST, json.dumps(manifest, indent=2, ensure_ascii=False) + "\n")
        return folder

    def manifest(self) -> dict[str, Any]:
        """eval.json, read. Raises RunError where there is none, or it is damaged or of another format."""
        file = self.path / MANIFEST
        if not file.is_file():
            raise RunError(f"{self.path} holds no evaluation ({MANIFEST} is missing); make one with `layerlens eval --out`")
        manifest = _json(file)
        if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
            raise RunError(f"{file} is not of format {FORMAT}, which this version of layerlens reads")
        return manifest

    def problems(self) -> list[dict[str, Any]]:
        """Id, ground truth and prompt of each problem."""
        return _json_lines(self.path / PROBLEMS)

    def rounds(self) -> list[int]:
        """The numbers of samples asked for so far, growing."""
        file = self.path / ROUNDS
        return [int(stop) for stop in _json(file)] if file.exists() else []

    def read(self, problem: int) -> dict[int, Answer]:
        file = self._answers_file(problem)
        if not file.exists():
            return {}
        try:
            return {row.pop("sample"): Answer(**row) for row in _json_lines(file)}
        except (TypeError, KeyError) as error:
            raise RunError(f"{file} is damaged ({error}); remove it and run the same evaluation again to restore it") from error

    def write(self, problem: int, answers: Mapping[int, Answer]) -> None:
        with FileLock(self.path / LOCKS / f"problem-{problem:06d}"):
            merged = {**answers, **self.read(problem)}
            write_text(self._answers_file(problem), _lines([{"sample": sample} | asdict(merged[sample]) for sample in sorted(merged)]))

    def plan(self, samples: int, problems: int) -> list[int]:
        """Earlier rounds are finished first, in the batches they were begun in, so that a resumed round ends the same to the bit."""
        with FileLock(self.path / LOCKS / "rounds"):
            rounds = [stop for stop in self.rounds() if stop < samples]
            if any(not set(range(samples)) <= self.read(problem).keys() for problem in range(problems)):
                write_text(self.path / ROUNDS, json.dumps([*rounds, samples]) + "\n")
            return [*rounds, samples]

    def claim(self, name: str) -> AbstractContextManager[bool]:
        return claim(self.path / LOCKS / name)

    def _answers_file(self, problem: int) -> Path:
        return self.path / ANSWERS / f"{problem:06d}.jsonl"


def _lines(rows: Sequence[Mapping[str, Any]]) -> str:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def _json(file: Path) -> Any:
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise RunError(f"{file} can not be read ({error})") from error


def _json_lines(file: Path) -> list[dict[str, Any]]:
    try:
        # splitlines would also split at the line separators that an answer may hold
        return [json.loads(line) for line in file.read_text(encoding="utf-8").split("\n") if line]
    except (OSError, ValueError) as error:
        raise RunError(f"{file} can not be read ({error}); remove it and run the same evaluation again to restore it") from error
