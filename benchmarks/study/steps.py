"""Commands that are run once: a study that was killed goes on where it stopped."""

from __future__ import annotations

import ctypes
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from layerlens.errors import LayerLensError
from layerlens.storage.files import write_text

PR_SET_PDEATHSIG = 1
"""From linux/prctl.h."""
ON_A_CARD = {
    "layerlens train": ("--use_cpu", "false"),
    "layerlens analyze": ("--device", "cuda"),
    "layerlens eval": ("--device", "cuda"),
    "python -m recipes.tiny_models.train": ("--device", "cuda"),
}
"""How a command begins -> what has it use a CUDA card. A step is the same step wherever it runs."""
DONE = "done"
"""Folder of a file for each step that has ended, with its command and what results read of it."""


@dataclass(frozen=True)
class Step:
    """One command.

    Attributes:
        name: of the step, and of the folder that it fills.
        words: the command as it is typed; `{out}` stands for the study's folder.
        trains: whether it is a training, which goes on from its last checkpoint if it was stopped.
        keep: from the path that the step fills to what results read of it; None if nothing but later steps or figures do.
    """

    name: str
    words: tuple[str, ...]
    trains: bool = False
    keep: Callable[[Path], dict[str, Any]] | None = None

    def command(self, out: Path, cuda: bool = False) -> list[str]:
        """The words to run: `layerlens ...`, or `python -m ...` for a recipe, with this Python."""
        words = [word.format(out=out) for word in self.words]
        if cuda:
            words += next((more for start, more in ON_A_CARD.items() if " ".join(words).startswith(f"{start} ")), ())
        start = ["-m", "layerlens"] if words[0] == "layerlens" else words[1:3]
        return [sys.executable, *start, *words[1 if words[0] == "layerlens" else 3 :]]

    def run(self, out: Path, cuda: bool = False) -> None:
        """Runs the command unless it has been run to its end. Raises LayerLensError if it fails, or was another command before."""
        marker = out / DONE / f"{self.name}.json"
        if marker.is_file():
            if json.loads(marker.read_text())["words"] != list(self.words):
                raise LayerLensError(f"{marker}: {self.name} was run with other settings: take a new --out, or remove this file")
            return
        command = self.command(out, cuda)
        if self.trains:
            folder = out / self.name
            if any(folder.glob("checkpoint-*")):
                command += ["--resume", "true"]
            else:
                shutil.rmtree(folder, ignore_errors=True)
        log = out / "logs" / f"{self.name}.log"
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("a") as text:
            text.write(f"$ {' '.join(command)}\n")
            text.flush()
            environment = {**os.environ, "OMP_NUM_THREADS": "1"}
            done = subprocess.run(command, stdout=text, stderr=subprocess.STDOUT, env=environment, check=False, preexec_fn=_end_with_parent)
        if done.returncode:
            last = log.read_text().strip().splitlines()[-1]
            raise LayerLensError(f"{self.name} failed ({last}); see {log}, then run the same study again")
        for checkpoint in (out / self.name).glob("checkpoint-*") if self.trains else ():
            shutil.rmtree(checkpoint)
        self.mark(out, None if self.keep is None else self.keep(out / self.name))

    def mark(self, out: Path, kept: dict[str, Any] | None) -> None:
        """Notes that the step has been run to its end, with what is kept of it."""
        write_text(out / DONE / f"{self.name}.json", json.dumps({"words": list(self.words), "kept": kept}) + "\n")


def _end_with_parent() -> None:
    """Has Linux end this process when the study is killed: two processes must not fill one folder when the study is run again."""
    with suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)


Chain = Sequence[Step]
"""Steps that need one another, in order."""


def run_chains(
    chains: Iterable[Chain], out: Path, jobs: int, ended: Callable[[Step], None] = lambda step: None, cuda: bool = False
) -> None:
    """Runs the steps of each chain in order, `jobs` chains at a time, on a CUDA card if asked; a step in several chains is run once.

    `ended` is called with each step that has been run to its end, now or before. Raises LayerLensError for the first chain that failed,
    after the others have ended.
    """
    seen: set[str] = set()
    work = []
    for chain in chains:
        new = {step.name: step for step in chain if step.name not in seen}
        seen |= new.keys()
        if new:
            work.append(list(new.values()))
    total = sum(map(len, work))
    print(f"{total} steps, {jobs} at a time, into {out}", file=sys.stderr, flush=True)

    def run(chain: Chain) -> LayerLensError | None:
        try:
            for step in chain:
                step.run(out, cuda)
                ended(step)
                print(f"done: {step.name}", file=sys.stderr, flush=True)
        except LayerLensError as error:
            return error
        return None

    with ThreadPoolExecutor(jobs) as pool:
        failed = [error for error in pool.map(run, work) if error is not None]
    if failed:
        raise failed[0]
