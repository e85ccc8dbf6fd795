"""Ranges of the vocabulary that threads reduce.

The ranges do not depend on the number of threads, and their accumulators are combined in the order of the vocabulary, so results do
not depend on the number of threads either. Each thread takes the next waiting range when it is ready: a thread that another program
holds up leaves the remaining ranges to the others.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import cache
from queue import Empty, SimpleQueue
from typing import TypeVar

import torch

from layerlens.decode.moments import PartialSums
from layerlens.decode.request import ReadoutRequest

RANGES = 16
"""Number of ranges, unless a chunk is larger than a range."""

CHUNK_ELEMENTS = 1 << 20
"""Logits in a chunk, float32 each."""

WEIGHT_ELEMENTS = 1 << 21
"""Weights in a chunk if they are not float32: at most this many float32 copies of them are made at a time."""

T = TypeVar("T")

RangeReduction = Callable[[int, int], PartialSums]
"""Computes the accumulators of the tokens start…stop-1, given start and stop."""


def reduce_ranges(request: ReadoutRequest, new_worker: Callable[[], Callable[[int, int], T]]) -> list[T]:
    """What a worker makes of each range, in the order of the vocabulary. Every thread reduces its ranges with a worker of its own."""
    size = max(chunk_size(request), -(-request.vocabulary // RANGES))
    starts = range(0, request.vocabulary, size)
    threads = min(torch.get_num_threads(), len(starts)) if request.hidden.device.type == "cpu" else 1
    waiting = SimpleQueue[int]()
    for start in starts:
        waiting.put(start)

    @torch.no_grad()
    def reduce_waiting(_: int) -> dict[int, T]:
        reduce_range, reduced = new_worker(), {}
        with suppress(Empty):
            while True:
                start = waiting.get_nowait()
                reduced[start] = reduce_range(start, min(start + size, request.vocabulary))
        return reduced

    by_thread = [reduce_waiting(0)] if threads == 1 else list(_pool(threads, os.getpid()).map(reduce_waiting, range(threads)))
    reduced = {start: sums for ranges in by_thread for start, sums in ranges.items()}
    return [reduced[start] for start in starts]


def chunk_size(request: ReadoutRequest) -> int:
    """Tokens of the vocabulary in a chunk, so that its logits, and its weights if they have to be made float32, are bounded."""
    size = CHUNK_ELEMENTS // max(1, request.total_rows)
    if request.unembedding.weight.dtype != torch.float32:
        size = min(size, WEIGHT_ELEMENTS // request.hidden.shape[1])
    return max(64, min(4096, size))


@cache
def _pool(threads: int, _process: int) -> ThreadPoolExecutor:
    """Threads of this process in which each torch operation uses one thread; the program's other threads keep their setting."""
    before = torch.get_num_threads()
    ready = threading.Barrier(threads + 1)
    pool = ThreadPoolExecutor(threads, thread_name_prefix="layerlens", initializer=torch.set_num_threads, initargs=(1,))
    for _ in range(threads):
        pool.submit(ready.wait)
    ready.wait()
    torch.set_num_threads(before)  # threads that start later take over the last value that any thread has set
    return pool
