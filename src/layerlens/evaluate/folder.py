"""An evaluation on disk: eval.json, the problems, and one file of answers per problem, each written whole or not at all.

```
eval.json             what was run on what; a folder holds one configuration
problems.jsonl        id, ground_truth and prompt text of each problem
rounds.json           the numbers of answers per problem that were asked for, growing
answers/000000.jsonl  the answers to the first problem, one JSON object a line: answer (its number), text, tokens, finished, score,
                      and unchecked (why the reward gave no number) if it was not checked
```
Answer numbers count from 0. Lines written by earlier versions say `sample` for `answer`; both are read.
Processes that fill one folder claim groups of problems by file locks, which end with the process.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import Any

from layerlens.errors import RunError
from layerlens.evaluate.result import Answer
from layerlens.storage.files import write_text
from layerlens.storage.folder import SharedFolder
from layerlens.storage.manifest import EvaluationManifest
from layerlens.storage.plain import from_plain

PROBLEMS, ROUNDS, ANSWERS = "problems.jsonl", "rounds.json", "answers"
NUMBER, OLD_NUMBER = "answer", "sample"
"""The key of an answer's number in its line, and the key in lines written by earlier versions."""


class AnswerMemory:
    """Answers in memory alone, with the interface of those in a folder."""

    path: Path | None = None

    def __init__(self) -> None:
        self._answers: dict[int, dict[int, Answer]] = {}

    def read(self, problem: int) -> dict[int, Answer]:
        """The answers to a problem, by answer number."""
        return dict(self._answers.get(problem, {}))

    def write(self, problem: int, answers: Mapping[int, Answer]) -> None:
        """Adds answers to those that are there, of which only one that was not checked is replaced."""
        self._answers[problem] = _merged(self._answers.get(problem, {}), answers)

    def plan(self, answers: int, problems: int) -> list[int]:
        """The rounds to work through: the number of answers that each problem has after each round."""
        return [answers]

    def claim(self, name: str) -> AbstractContextManager[bool]:
        """A context that tells whether this process may do the named piece of work."""
        return nullcontext(True)


class AnswerFolder(SharedFolder[EvaluationManifest]):
    """Answers in a folder. Make one with `begin` to write, or with the path of an existing one to read."""

    manifest_file = "eval.json"
    manifest_type = EvaluationManifest
    holds = "evaluation"
    made_by = "layerlens eval --out"
    entries = frozenset({PROBLEMS, ROUNDS, ANSWERS})

    @classmethod
    def begin(cls, path: str | Path, manifest: EvaluationManifest, problems: Sequence[Mapping[str, Any]]) -> AnswerFolder:
        """As `SharedFolder.create`, with the problems beside the manifest."""

        def prepare(folder: AnswerFolder) -> None:
            if not (folder.path / PROBLEMS).exists():
                write_text(folder.path / PROBLEMS, _lines(problems))

        return cls.create(path, manifest, prepare)

    def problems(self) -> list[dict[str, Any]]:
        """Id, ground truth and prompt of each problem. Raises RunError if the file is damaged."""
        file = self.path / PROBLEMS
        rows = _json_lines(file)
        if not all(isinstance(row.get(name), str) for row in rows for name in ("id", "ground_truth")):
            raise RunError(f"{file} is damaged: expected id and ground_truth in every line; remove it and evaluate again to restore it")
        return rows

    def rounds(self) -> list[int]:
        """The numbers of answers per problem that were asked for so far, growing."""
        file = self.path / ROUNDS
        found = _json(file) if file.exists() else []
        if not isinstance(found, list) or not all(isinstance(stop, int) for stop in found):
            raise RunError(f"{file} is damaged: expected a list of numbers; remove it and run the same evaluation again to restore it")
        return found

    def read(self, problem: int) -> dict[int, Answer]:
        """The answers to a problem, by answer number."""
        file = self._answers_file(problem)
        if not file.exists():
            return {}
        try:
            return {_pop_number(row): from_plain(Answer, row) for row in _json_lines(file)}
        except (TypeError, ValueError, KeyError) as error:
            raise RunError(f"{file} is damaged ({error}); remove it and run the same evaluation again to restore it") from error

    def write(self, problem: int, answers: Mapping[int, Answer]) -> None:
        """Adds answers to those that are there, of which only one that was not checked is replaced."""
        with self.lock(f"problem-{problem:06d}"):
            merged = _merged(self.read(problem), answers)
            write_text(self._answers_file(problem), _lines([{NUMBER: number} | _plain(merged[number]) for number in sorted(merged)]))

    def plan(self, answers: int, problems: int) -> list[int]:
        """As in memory. Rounds that were begun are finished in their own batches, so that a resumed run ends the same to the last bit."""
        with self.lock("rounds"):
            if all(set(range(answers)) <= self.read(problem).keys() for problem in range(problems)):
                return [answers]
            asked = self.rounds()
            if not asked or answers > asked[-1]:
                asked = [*asked, answers]
            write_text(self.path / ROUNDS, json.dumps(asked) + "\n")
            return [stop for stop, before in zip(asked, [0, *asked], strict=False) if before < answers]

    def _answers_file(self, problem: int) -> Path:
        return self.path / ANSWERS / f"{problem:06d}.jsonl"


def _merged(there: Mapping[int, Answer], fresh: Mapping[int, Answer]) -> dict[int, Answer]:
    return {**there, **{number: answer for number, answer in fresh.items() if number not in there or there[number].unchecked is not None}}


def _plain(answer: Answer) -> dict[str, Any]:
    return {name: value for name, value in asdict(answer).items() if value is not None}


def _pop_number(row: dict[str, Any]) -> int:
    return from_plain(int, row.pop(OLD_NUMBER if OLD_NUMBER in row else NUMBER))  # type: ignore[no-any-return]


def _lines(rows: Sequence[Mapping[str, Any]]) -> str:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def _json(file: Path) -> Any:
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise RunError(f"{file} cannot be read ({error})") from error


def _json_lines(file: Path) -> list[dict[str, Any]]:
    try:
        # splitlines would also split at the line separators that an answer may hold
        rows = [json.loads(line) for line in file.read_text(encoding="utf-8").split("\n") if line]
        if not all(isinstance(row, dict) for row in rows):
            raise ValueError("a line is no JSON object")
        return rows
    except (OSError, ValueError) as error:
        raise RunError(f"{file} cannot be read ({error}); remove it and run the same evaluation again to restore it") from error
