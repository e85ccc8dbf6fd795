"""The torch backend: chunks of float32 logits that fit the cache, each reduced as soon as it is computed."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from jaxtyping import Float
from torch import Tensor

from layerlens.decode.cpu.ranges import RangeReduction, chunk_size, reduce_ranges
from layerlens.decode.moments import PartialSums, combine
from layerlens.decode.reduction import Reducer
from layerlens.decode.request import ReadoutRequest
from layerlens.decode.top_tokens import add_token_ids

Product = Callable[[Float[Tensor, "n d"], Float[Tensor, "chunk d"], Float[Tensor, "n chunk"]], None]
"""Computes the float32 product of hidden vectors and the unembedding of a chunk, and writes it to the third argument."""


def torch_backend(request: ReadoutRequest, product: Product, reducer: type[Reducer] = Reducer) -> PartialSums:
    """Computes a request over the whole vocabulary. Vectors and weights are made float32 before they are multiplied."""
    vectors = request.all_vectors.float()
    reducers: list[Reducer] = []

    def new_worker() -> RangeReduction:
        reducers.append(reducer(request))
        return partial(_reduce_range, request, vectors, product, reducers[-1])

    return add_token_ids(combine(reduce_ranges(request, new_worker)), [reducer.largest for reducer in reducers])


def _reduce_range(
    request: ReadoutRequest, vectors: Float[Tensor, "n d"], product: Product, reducer: Reducer, start: int, stop: int
) -> PartialSums:
    """The accumulators of tokens start…stop-1. One buffer serves the logits of all chunks, another one their float32 weights."""
    weight, chunk, slices = request.unembedding.weight, chunk_size(request), request.row_slices
    buffer = weight.new_empty(len(vectors) * chunk, dtype=torch.float32)
    floats = weight.new_empty((chunk, weight.shape[1]), dtype=torch.float32) if weight.dtype != torch.float32 else None
    parts = []
    for first in range(start, stop, chunk):
        end = min(first + chunk, stop)
        tokens = weight[first:end] if floats is None else floats[: end - first].copy_(weight[first:end])
        logits = buffer[: len(vectors) * (end - first)].view(len(vectors), end - first)
        product(vectors, tokens, logits)
        request.unembedding.product_to_logits_(logits, first, end)
        parts.append(reducer.reduce({name: logits[rows] for name, rows in slices.items()}, first))
    return combine(parts)
