"""The pass over the vocabulary: chunks of logits that fit a cache, ranges of chunks that threads take, one join at the end.

Ranges are the same whatever the number of threads, and are joined in their order, so results do not depend on threads. A
thread that is held up by another program leaves its share to the others.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import cache, partial
from queue import Empty, SimpleQueue

import torch
from jaxtyping import Float
from torch import Tensor

from layerlens.decode.logits import Task
from layerlens.decode.reduction import Reducer, with_ids
from layerlens.decode.sums import Sums, merge

RANGES = 16
CHUNK_ELEMENTS = 1 << 20
"""Logits in a chunk, float32 each."""
WEIGHT_ELEMENTS = 1 << 21
"""Weights in a chunk: as many float32 values may have to be made of low-precision ones at a time."""

Product = Callable[[Float[Tensor, "n d"], Float[Tensor, "chunk d"], Float[Tensor, "n chunk"]], None]
"""Hidden vectors and the unembedding of a chunk to their float32 product, written to the third."""

Work = Callable[[int, int], Sums]
"""The sums of the tokens from the first number to the one before the second."""


def stream(task: Task, product: Product, reducer: type[Reducer] = Reducer) -> Sums:
    """One pass over the whole vocabulary; everything is float32 before it comes to the product."""
    states = task.states.float()
    reducers: list[Reducer] = []

    def worker() -> Work:
        reducers.append(reducer(task))
        return partial(_range, task, states, product, reducers[-1])

    return with_ids(merge(over_ranges(task, worker)), [each.found for each in reducers])


def over_ranges(task: Task, worker: Callable[[], Work]) -> list[Sums]:
    """The sums of each range, in the order of the vocabulary; every thread makes itself one worker."""
    size = max(chunk_size(task), -(-task.vocab // RANGES))
    starts = range(0, task.vocab, size)
    threads = min(torch.get_num_threads(), len(starts)) if task.hidden.device.type == "cpu" else 1
    waiting = SimpleQueue[int]()
    for start in starts:
        waiting.put(start)

    @torch.no_grad()
    def share(_: int) -> dict[int, Sums]:
        work, done = worker(), {}
        with suppress(Empty):
            while True:
                start = waiting.get_nowait()
                done[start] = work(start, min(start + size, task.vocab))
        return done

    shares = [share(0)] if threads == 1 else list(_pool(threads, os.getpid()).map(share, range(threads)))
    done = {start: sums for part in shares for start, sums in part.items()}
    return [done[start] for start in starts]


def chunk_size(task: Task) -> int:
    """Tokens of the vocabulary in a chunk: bounded logits, and bounded weights where these have to be made float32."""
    size = CHUNK_ELEMENTS // max(1, task.n_states)
    if task.logits.weight.dtype != torch.float32:
        size = min(size, WEIGHT_ELEMENTS // task.hidden.shape[1])
    return max(64, min(4096, size))


def _range(task: Task, states: Float[Tensor, "n d"], product: Product, reducer: Reducer, start: int, stop: int) -> Sums:
    weight, chunk, cuts = task.logits.weight, chunk_size(task), task.cuts
    space = weight.new_empty(len(states) * chunk, dtype=torch.float32)
    floats = weight.new_empty((chunk, weight.shape[1]), dtype=torch.float32) if weight.dtype != torch.float32 else None
    parts = []
    for a in range(start, stop, chunk):
        b = min(a + chunk, stop)
        here = weight[a:b] if floats is None else floats[: b - a].copy_(weight[a:b])
        x = space[: len(states) * (b - a)].view(len(states), b - a)
        product(states, here, x)
        task.logits.finish_(x, a, b)
        parts.append(reducer.take({name: x[rows] for name, rows in cuts.items()}, a))
    return merge(parts)


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
