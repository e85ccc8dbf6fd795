"""Shared work that tells a progress what this process and the others have done, and when it waits for them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import TypeVar

from layerlens.progress import Progress
from layerlens.storage.shared_work import Work, share_work

WAITING = "waiting for another process"

Piece = TypeVar("Piece")


def share_reported_work(
    pieces: Sequence[Piece],
    report: Progress,
    *,
    claim: Callable[[Piece], AbstractContextManager[bool]],
    size: Callable[[Piece], int],
    lacking: Callable[[Piece], int],
    work: Work[Piece],
) -> None:
    """As `share_work`, with a progress.

    Args:
        report: is told what was there at the start, what other processes finish, and when this one waits for them; `work` tells it what
            this process finishes.
        claim: as in `share_work`.
        size: the number of steps of a piece.
        lacking: how many of them are not done yet; 0 if the piece is finished.
        work: as in `share_work`.
    """
    left = [lacking(piece) for piece in pieces]
    report.already(sum(map(size, pieces)) - sum(left))

    def is_done(number: int) -> bool:
        found = lacking(pieces[number])
        report(left[number] - found)
        left[number] = found
        return not found

    @contextmanager
    def claimed(number: int) -> Iterator[bool]:
        with claim(pieces[number]) as mine:
            if not mine:
                report.doing(WAITING)
            yield mine

    def run(number: int) -> Callable[[], object] | None:
        report.doing("")
        finish = work(pieces[number])
        left[number] = 0
        return finish

    share_work(range(len(pieces)), claim=claimed, is_done=is_done, work=run)
