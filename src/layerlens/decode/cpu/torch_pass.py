"""The pass over the vocabulary: chunks of logits that fit a cache, ranges of chunks that threads take, one join at the end.

Ranges are the same whatever the number of threads, and are joined in their order, so results do not depend on threads. A
thread that is held up by another program leaves its share to the others.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from jaxtyping import Float
from torch import Tensor

from layerlens.decode.cpu.ranges import Work, chunk_size, over_ranges
from layerlens.decode.moments import PartialSums, merge
from layerlens.decode.reduction import Reducer, with_ids
from layerlens.decode.request import ReadoutRequest

Product = Callable[[Float[Tensor, "n d"], Float[Tensor, "chunk d"], Float[Tensor, "n chunk"]], None]
"""Hidden vectors and the unembedding of a chunk to their float32 product, written to the third."""


def stream(request: ReadoutRequest, product: Product, reducer: type[Reducer] = Reducer) -> PartialSums:
    """One pass over the whole vocabulary; everything is float32 before it comes to the product."""
    states = request.states.float()
    reducers: list[Reducer] = []

    def worker() -> Work:
        reducers.append(reducer(request))
        return partial(_range, request, states, product, reducers[-1])

    return with_ids(merge(over_ranges(request, worker)), [each.found for each in reducers])


def _range(request: ReadoutRequest, states: Float[Tensor, "n d"], product: Product, reducer: Reducer, start: int, stop: int) -> PartialSums:
    weight, chunk, cuts = request.unembedding.weight, chunk_size(request), request.cuts
    space = weight.new_empty(len(states) * chunk, dtype=torch.float32)
    floats = weight.new_empty((chunk, weight.shape[1]), dtype=torch.float32) if weight.dtype != torch.float32 else None
    parts = []
    for a in range(start, stop, chunk):
        b = min(a + chunk, stop)
        here = weight[a:b] if floats is None else floats[: b - a].copy_(weight[a:b])
        x = space[: len(states) * (b - a)].view(len(states), b - a)
        product(states, here, x)
        request.unembedding.finish_(x, a, b)
        parts.append(reducer.take({name: x[rows] for name, rows in cuts.items()}, a))
    return merge(parts)
