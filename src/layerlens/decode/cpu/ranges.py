"""Ranges of the vocabulary that threads take in turns.

Ranges are the same whatever the number of threads, and are joined in their order, so results do not depend on threads. A
thread that is held up by another program leaves its share to the others.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import cache
from queue import Empty, SimpleQueue

import torch

from layerlens.decode.moments import PartialSums
from layerlens.decode.request import ReadoutRequest

RANGES = 16

CHUNK_ELEMENTS = 1 << 20
"""Logits in a chunk, float32 each."""

WEIGHT_ELEMENTS = 1 << 21
"""Weights in a chunk: as many float32 values may have to be made of low-precision ones at a time."""

Work = Callable[[int, int], PartialSums]
"""The sums of the tokens from the first number to the one before the second."""


def over_ranges(request: ReadoutRequest, worker: Callable[[], Work]) -> list[PartialSums]:
    """The sums of each range, in the order of the vocabulary; every thread makes itself one worker."""
    size = max(chunk_size(request), -(-request.vocabulary // RANGES))
    starts = range(0, request.vocabulary, size)
    threads = min(torch.get_num_threads(), len(starts)) if request.hidden.device.type == "cpu" else 1
    waiting = SimpleQueue[int]()
    for start in starts:
        waiting.put(start)

    @torch.no_grad()
    def share(_: int) -> dict[int, PartialSums]:
        work, done = worker(), {}
        with suppress(Empty):
            while True:
                start = waiting.get_nowait()
                done[start] = work(start, min(start + size, request.vocabulary))
        return done

    shares = [share(0)] if threads == 1 else list(_pool(threads, os.getpid()).map(share, range(threads)))
    done = {start: sums for part in shares for start, sums in part.items()}
    return [done[start] for start in starts]


def chunk_size(request: ReadoutRequest) -> int:
    """Tokens of the vocabulary in a chunk: bounded logits, and bounded weights where these have to be made float32."""
    size = CHUNK_ELEMENTS // max(1, request.n_states)
    if request.unembedding.weight.dtype != torch.float32:
        size = min(size, WEIGHT_ELEMENTS // request.hidden.shape[1])
    return max(64, min(4096, size))


@cache
def _pool(threads: int, _process: int) -> ThreadPoolExecutor:
    """Threads of this process in which torch's own operations use one thread each; the other threads of the program keep theirs."""
    before = torch.get_num_threads()
    ready = threading.Barrier(threads + 1)
    pool = ThreadPoolExecutor(threads, thread_name_prefix="layerlens", initializer=torch.set_num_threads, initargs=(1,))
    for _ in range(threads):
        pool.submit(ready.wait)
    ready.wait()
    torch.set_num_threads(before)  # what threads that are yet to start will use is a setting of the process
    return pool
