"""What steps leave that results are made from: small enough to stay in the repository, so that a study goes on on another machine."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from threading import Lock
from typing import Any

from benchmarks.study.steps import DONE, Chain, Step

import layerlens as ll
from layerlens.errors import LayerLensError
from layerlens.evaluate import Answer, Evaluation, Problem, open_evaluation
from layerlens.results import open_training
from layerlens.storage.files import write_text
from layerlens.storage.manifest import EvaluationManifest
from layerlens.storage.plain import from_plain

Kept = dict[str, Any]
WATCHED = ("drift/", "similarity/above", "kl/above")
"""The columns of a training's monitor that results read."""


def scores(folder: Path) -> Kept:
    """Of an evaluation: how it was made, the number of answers to each problem, and how many of them are right."""
    [file] = folder.glob("*/eval.json")
    found = open_evaluation(file.parent)
    return {"manifest": asdict(found.manifest), "answers": found.n_answers, "right": found.correct.sum(1).tolist()}


def evaluation(kept: Kept) -> Evaluation:
    """The evaluation of `scores`, without its texts; which answers to a problem are the right ones is lost, and no result asks.

    Problems are called by the digest of their set and a number, so that those of another set are told apart.
    """
    digest = kept["manifest"]["problems"]["digest"]
    problems = [
        Problem(f"{digest}-{i:04d}", "", tuple(Answer("", 0, True, float(number < right)) for number in range(kept["answers"])))
        for i, right in enumerate(kept["right"])
    ]
    return Evaluation(tuple(problems), from_plain(EvaluationManifest, kept["manifest"]))


def watched(folder: Path) -> Kept:
    """Of a training: what its monitor saw first and last."""
    monitor = open_training(folder).monitor
    columns = [name for name in monitor if name.startswith(WATCHED)]
    rows = {"first": monitor.iloc[0], "last": monitor.iloc[-1]}
    return {which: {name: float(row[name]) for name in columns} for which, row in rows.items()}


def curves(folder: Path) -> Kept:
    """Of an analysis: by layer, the mean entropy of the stream and the mean FFN ΔS, in nats."""
    run = ll.open_run(folder)
    change = run.mean("entropy_change")["mean"].sel(module="ffn")
    return {"entropy": run.mean("entropy")["mean"].sel(site="resid_post").values.tolist(), "ffn": change.values.tolist()}


def numbers(file: Path) -> Kept:
    """Of a file of numbers: all of it."""
    return json.loads(file.read_text(encoding="utf-8"))


def kept(out: Path, name: str) -> Kept:
    """What a step left. Raises LayerLensError if it has not been run."""
    marker = out / DONE / f"{name}.json"
    if not marker.is_file():
        raise LayerLensError(f"{name} has not been run into {out}: run the question first")
    return json.loads(marker.read_text(encoding="utf-8"))["kept"]


def made_with(chains: Iterable[Chain], out: Path) -> dict[str, int]:
    """The versions of torch that evaluated models, with CUDA's if it was on a card -> how many."""
    names = dict.fromkeys(step.name for chain in chains for step in chain if step.keep is scores)
    return dict(Counter(kept(out, name)["manifest"]["versions"]["torch"] for name in names))


class Keeper:
    """One line for each step, in a file of the repository. Raises LayerLensError for a line that is damaged."""

    def __init__(self, file: Path) -> None:
        self._file, self._lock = file, Lock()
        self._rows: dict[str, dict[str, Any]] = {}
        for number, line in enumerate(file.read_text(encoding="utf-8").splitlines() if file.is_file() else [], 1):
            try:
                row = json.loads(line)
                self._rows[row["name"]] = {key: row[key] for key in ("name", "words", "kept")}
            except (json.JSONDecodeError, TypeError, KeyError) as error:
                raise LayerLensError(f"{file}, line {number} is damaged ({error}): remove the line, and its step is run again") from None

    def restore(self, chains: Iterable[Chain], out: Path) -> list[Chain]:
        """The chains that are left to run: without those of which all is kept, by the same commands; their results can then be read."""
        left = []
        for chain in chains:
            ends = [step for step in chain if step.keep is not None]
            if ends and all(self._rows.get(step.name, {}).get("words") == list(step.words) for step in ends):
                for step in ends:
                    step.mark(out, self._rows[step.name]["kept"])
            else:
                left.append(chain)
        return left

    def add(self, step: Step, out: Path) -> None:
        """Keeps what a step left."""
        if step.keep is None:
            return
        with self._lock:
            self._rows[step.name] = {"name": step.name, "words": list(step.words), "kept": kept(out, step.name)}
            rows = [json.dumps(self._rows[name], ensure_ascii=False, separators=(",", ":")) for name in sorted(self._rows)]
            write_text(self._file, "".join(f"{row}\n" for row in rows))
