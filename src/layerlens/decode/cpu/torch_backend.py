"""The torch backend: chunks of float32 logits that fit the cache, each reduced as soon as it is computed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial

import torch
from jaxtyping import Float
from torch import Tensor

from layerlens.decode.cpu.ranges import RangeReduction, chunk_size, reduce_ranges
from layerlens.decode.moments import PartialSums, combine
from layerlens.decode.reduction import Reducer
from layerlens.decode.request import ReadoutRequest
from layerlens.decode.second_look import SecondLook, add_sums
from layerlens.decode.top_tokens import add_token_ids

Product = Callable[[Float[Tensor, "n d"], Float[Tensor, "chunk d"], Float[Tensor, "n chunk"]], None]
"""Computes the float32 product of hidden vectors and the unembedding of a chunk, and writes it to the third argument."""


def torch_backend(request: ReadoutRequest, product: Product, reducer: type[Reducer] = Reducer) -> PartialSums:
    """Computes a request over the whole vocabulary. Vectors and weights are made float32 before they are multiplied."""
    vectors = request.all_vectors.float()
    reducers: list[Reducer] = []
    kept = request.memory.take(len(vectors) * request.vocabulary, vectors.device) if request.second else None

    def new_worker() -> RangeReduction:
        reducers.append(reducer(request))
        return partial(_reduce_range, request, vectors, product, reducers[-1], kept)

    sums = add_token_ids(combine(reduce_ranges(request, new_worker)), [reducer.largest for reducer in reducers])
    if kept is None:
        return sums
    look = SecondLook(request, sums)
    return replace(sums, second=add_sums(reduce_ranges(request, lambda: partial(_look_again, request, look, kept))))


def _reduce_range(
    request: ReadoutRequest,
    vectors: Float[Tensor, "n d"],
    product: Product,
    reducer: Reducer,
    kept: Float[Tensor, " size"] | None,
    start: int,
    stop: int,
) -> PartialSums:
    """The accumulators of tokens start…stop-1. One buffer serves the logits of all chunks, another one their float32 weights.

    With `kept` the logits of each chunk stay there (`_chunk_of`).
    """
    weight, chunk, slices = request.unembedding.weight, chunk_size(request), request.row_slices
    buffer = weight.new_empty(len(vectors) * chunk if kept is None else 0, dtype=torch.float32)
    floats = weight.new_empty((chunk, weight.shape[1]), dtype=torch.float32) if weight.dtype != torch.float32 else None
    parts = []
    for first in range(start, stop, chunk):
        end = min(first + chunk, stop)
        tokens = weight[first:end] if floats is None else floats[: end - first].copy_(weight[first:end])
        logits = _chunk_of(buffer, len(vectors), 0, end - first) if kept is None else _chunk_of(kept, len(vectors), first, end)
        product(vectors, tokens, logits)
        request.unembedding.product_to_logits_(logits, first, end)
        policies = {name: logits[rows] for name, rows in slices.items()}
        if kept is not None:  # the reducer overwrites those of anchors
            policies |= {name: policies[name].clone() for name in request.anchors}
        parts.append(reducer.reduce(policies, first))
    return combine(parts)


def _look_again(
    request: ReadoutRequest, look: SecondLook, kept: Float[Tensor, " size"], start: int, stop: int
) -> dict[str, Float[Tensor, " n"]]:
    parts, chunk = [], chunk_size(request)
    for first in range(start, stop, chunk):
        logits = _chunk_of(kept, request.total_rows, first, min(first + chunk, stop))
        parts.append(look({name: logits[rows] for name, rows in request.row_slices.items()}, first))
    return add_sums(parts)


def _chunk_of(memory: Float[Tensor, " size"], rows: int, first: int, end: int) -> Float[Tensor, "n chunk"]:
    """The place of the logits of tokens first…end-1 in memory that holds the chunks of the vocabulary one after another."""
    return memory[rows * first : rows * end].view(rows, end - first)
