"""A case run from its seed, and whether the command ended as it should.

A command ends with exit code 0 and a right answer, or with 2 and one line; no traceback, no hang, no file of the user changed.
"""

from __future__ import annotations

import hashlib
import random
import re
import shutil
import signal
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.support.command_line import Ended
from tests.support.forked import HUNG, start
from tests.support.fuzz.makers import MAKERS, Case

SECONDS = 90.0
"""After which a command counts as hung."""
WATCHED = 3.0
"""Seconds after which Ctrl-C ends `layerlens watch`."""


@dataclass(frozen=True)
class Found:
    """A case with what was wrong with its end; an empty `wrong` if nothing was."""

    seed: int
    case: Case
    ended: Ended
    wrong: str = ""
    facts: dict[str, Any] = field(default_factory=dict)


def run_case(seed: int, whole: Path, folder: Path, maker: Callable[[Path, random.Random], Case] | None = None) -> Found:
    """Copies the material into a new folder, breaks it, runs the command there, and judges how it ended. The folder is removed."""
    rng = random.Random(seed)
    shutil.copytree(whole, folder)
    adapters = folder / "models" / "adapters" / "adapter_config.json"
    adapters.write_text(adapters.read_text().replace(str(whole), str(folder)))
    case = (maker or rng.choices(*zip(*MAKERS.items(), strict=True))[0])(folder, rng)  # type: ignore[arg-type]
    before = _digests(folder, case.writes)
    watched = _interrupt_later if case.verb == "watch" else None
    ended = start([case.verb, *case.words], folder, before=watched).wait(SECONDS)
    wrong = judged(ended, case.verb) or _changed(before, folder, case.writes)
    if not wrong and ended.code == 0:
        wrong = _answered_wrongly(case, ended, whole, folder)
    shutil.rmtree(folder)
    return Found(seed, case, ended, wrong)


def judged(ended: Ended, verb: str) -> str:
    """What is wrong with how a command ended; empty if nothing is."""
    if verb == "check" and ended.code == 2 and ended.out and not _errors(ended):  # it has told what it found
        return ""
    said = _errors(ended)
    if ended.code == HUNG:
        return "hung"
    if "Traceback" in ended.err or ended.code not in (0, 2, 130):
        return f"exit code {ended.code}: {(ended.err.strip().splitlines() or ['nothing said'])[-1][:300]}"
    if ended.code == 2 and (len(said) != 1 or ended.err.rstrip("\n").splitlines()[-1] != said[0]):
        return f"not one line but {len(said)}: {ended.err[-300:]!r}"
    return ""


def _errors(ended: Ended) -> list[str]:
    lines = ended.err.splitlines()
    return [line for line in lines if line.startswith(("layerlens: ", "Traceback")) and not line.startswith("layerlens: warning: ")]


def _interrupt_later() -> None:
    signal.signal(signal.SIGINT, signal.default_int_handler)  # which a shell takes from what runs in its background
    signal.signal(signal.SIGALRM, lambda *_: signal.raise_signal(signal.SIGINT))
    signal.setitimer(signal.ITIMER_REAL, WATCHED)


def _digests(folder: Path, but: tuple[str, ...]) -> dict[str, str]:
    left_out = (*(f"{place}/" for place in but), "child.out", "child.err")
    names = {str(file.relative_to(folder)): file for file in folder.rglob("*") if file.is_file()}
    return {
        name: hashlib.blake2b(file.read_bytes()).hexdigest()
        for name, file in names.items()
        if not name.startswith(left_out) and "/.locks/" not in name
    }


def _changed(before: dict[str, str], folder: Path, writes: tuple[str, ...]) -> str:
    after = _digests(folder, writes)
    changed = [name for name, digest in before.items() if after.get(name) != digest]
    return f"changed {', '.join(changed[:5])}" if changed else ""


def _answered_wrongly(case: Case, ended: Ended, whole: Path, folder: Path) -> str:
    if case.same_output:
        expected = start([case.verb, *case.words], whole, name=f"expected-{folder.name}").wait(SECONDS)
        for name in ("out", "err"):
            (whole / f"expected-{folder.name}.{name}").unlink()
        if _plain(ended.out, folder) != _plain(expected.out, whole):
            return "another answer than of the unbroken folder"
    for place in case.same_files:
        for file in sorted((whole / place).iterdir()):
            made = folder / place / file.name
            if not made.is_file() or made.read_bytes() != file.read_bytes():
                return f"{place}/{file.name} is not as in the unbroken folder"
    return ""


def _plain(text: str, folder: Path) -> str:
    return re.sub(r"\d+\.\d+ (s|MB)\b", "", text.replace(str(folder), "FOLDER"))
