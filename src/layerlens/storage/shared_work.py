"""The one loop by which processes that see a folder share its work."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, ExitStack
from typing import TypeVar

from layerlens.storage.launch import n_processes, rank

FIRST_WAIT, LONGEST_WAIT = 0.05, 5.0
"""Seconds between attempts to claim what other processes hold: they double while nothing can be claimed, and vary by half at random."""

Piece = TypeVar("Piece")

Work = Callable[[Piece], Callable[[], object] | None]
"""Finishes a piece, or finishes all but what goes on in the background, and returns what waits for that."""


def share_work(
    pieces: Iterable[Piece],
    *,
    claim: Callable[[Piece], AbstractContextManager[bool]],
    is_done: Callable[[Piece], bool],
    work: Work[Piece],
) -> None:
    """Works through all pieces, each done by exactly one process, and returns when every piece is done by somebody.

    A process that a launcher has numbered begins at its own share of the pieces, so that they do not all ask for the same ones.

    Args:
        claim: enters a context that tells whether this process alone may work on a piece; a dead process holds nothing.
        is_done: whether a piece is finished. Asked again after a claim, since another process may have finished it meanwhile.
        work: finishes a piece. What it returns, if anything, is called before the claim ends: when the next piece has been worked on, or
            nothing is left to do meanwhile. So one piece at a time is under way in the background.
    """
    waiting = list(pieces)
    first = int(len(waiting) * share_before())
    waiting = waiting[first:] + waiting[:first]
    wait = FIRST_WAIT
    with ExitStack() as under_way:
        while waiting:
            held_elsewhere = []
            for piece in waiting:
                if is_done(piece):
                    continue
                with ExitStack() as held:
                    if not held.enter_context(claim(piece)):
                        held_elsewhere.append(piece)
                    elif not is_done(piece):
                        if (finish := work(piece)) is not None:
                            held.callback(finish)
                        under_way.close()
                        under_way.push(held.pop_all())
            if held_elsewhere and len(held_elsewhere) == len(waiting):
                under_way.close()
                time.sleep(wait * random.uniform(0.5, 1.5))
                wait = min(2 * wait, LONGEST_WAIT)
            else:
                wait = FIRST_WAIT
            waiting = held_elsewhere


def share_before() -> float:
    """The share of the work that belongs to processes of lower number, 0 ≤ share < 1; 0 if no launcher has numbered this process."""
    return (rank() or 0) % n_processes() / n_processes()
