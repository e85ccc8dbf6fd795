"""Shared work with a progress: what others finish is told, and so is waiting for them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from layerlens.progress import Progress
from layerlens.storage import shared_work
from layerlens.storage.reported_work import WAITING, share_reported_work


def test_every_step_is_told_once_whoever_does_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """Piece a was half done before, another process has b until the second round and then finishes it, c is done by this process."""
    lacking = {"a": 1, "b": 2, "c": 2}
    report = Progress("work", 6, "tokens")
    told: list[tuple[str, float, str]] = []
    rounds = 0

    def sleep(_seconds: float) -> None:
        nonlocal rounds
        rounds += 1
        told.append(("sleep", report.steps, report.state))
        lacking["b"] = 0

    @contextmanager
    def claim(piece: str) -> Iterator[bool]:
        yield piece != "b"

    def work(piece: str) -> None:
        told.append((piece, report.steps, report.state))
        report(lacking[piece], 10)
        lacking[piece] = 0

    monkeypatch.setattr(shared_work.time, "sleep", sleep)
    share_reported_work(["a", "b", "c"], report, claim=claim, size=lambda _: 2, lacking=lacking.__getitem__, work=work)
    assert told == [("a", 1, ""), ("c", 2, ""), ("sleep", 4, WAITING)]
    assert (report.steps, report.units) == (6, 20)
