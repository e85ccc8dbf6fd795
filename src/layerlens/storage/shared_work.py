"""The one loop by which processes that see a folder share its work."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager
from typing import TypeVar

WAIT_SECONDS = 0.2
"""Time between two attempts to claim pieces of work that other processes hold."""

Piece = TypeVar("Piece")


def share_work(
    pieces: Iterable[Piece],
    *,
    claim: Callable[[Piece], AbstractContextManager[bool]],
    is_done: Callable[[Piece], bool],
    work: Callable[[Piece], None],
) -> None:
    """Works through all pieces, each done by exactly one process, and returns when every piece is done by somebody.

    Args:
        claim: enters a context that tells whether this process alone may work on a piece; a dead process holds nothing.
        is_done: whether a piece is finished. Asked again after a claim, since another process may have finished it meanwhile.
        work: finishes a piece.
    """
    waiting = list(pieces)
    while waiting:
        held_elsewhere = []
        for piece in waiting:
            if is_done(piece):
                continue
            with claim(piece) as claimed:
                if not claimed:
                    held_elsewhere.append(piece)
                elif not is_done(piece):
                    work(piece)
        if held_elsewhere and len(held_elsewhere) == len(waiting):
            time.sleep(WAIT_SECONDS)
        waiting = held_elsewhere
