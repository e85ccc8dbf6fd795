"""The native backend: one fused pass in C++ (`native.cpp`) over each range of the vocabulary."""

from __future__ import annotations

import ctypes
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor

from layerlens.decode.cpu.native_library import PolicySet, RangeLook, RangePass, library, required_library
from layerlens.decode.cpu.ranges import RangeReduction, reduce_ranges
from layerlens.decode.moments import Moments, PartialSums, combine
from layerlens.decode.request import ReadoutRequest
from layerlens.decode.second_look import add_sums
from layerlens.decode.top_tokens import LargestTokens, add_token_ids

DTYPES = (torch.float32, torch.bfloat16)

SECOND_LOOK_ORDER = ("js", "kl_from_final", "renyi", "rank")
"""The order of the sums in the struct `RangeLook`."""

PACKED_ORDER = ("final", "reference", "own")
"""The order of the sets of policies in the packed vectors: anchors come before the policies that are compared with them."""


def can_run(request: ReadoutRequest) -> bool:
    """Whether the native backend can compute a request: contiguous float32 or bfloat16 weights on a CPU, no soft-cap, a C++ compiler."""
    weight = request.unembedding.weight
    on_cpu = weight.device.type == "cpu" and weight.dtype in DTYPES and weight.is_contiguous()
    return on_cpu and request.unembedding.softcap is None and library() is not None


def can_dot(request: ReadoutRequest) -> bool:
    """Whether the processor can multiply the request's bfloat16 numbers pair by pair: exact products, summed in float32."""
    dtypes = {tensor.dtype for tensor in (request.unembedding.weight, request.hidden, *request.anchors.values())}
    pairs = dtypes == {torch.bfloat16} and request.hidden.shape[1] % 2 == 0
    return pairs and can_run(request) and bool(required_library().layerlens_has_dot())


def native_backend(request: ReadoutRequest, dot: bool = False, product_alone: bool = False) -> PartialSums:
    """Computes a request over the whole vocabulary.

    `dot` multiplies bfloat16 pairs (see `can_dot`). `product_alone`, for timing, leaves out the reduction: the sums mean nothing.
    """
    operands = _Operands.of(request, dot, product_alone)
    workers: list[dict[str, _TopLogits]] = []
    logits = request.memory.take(operands.lanes * request.vocabulary, torch.device("cpu")) if request.second else None

    def new_worker() -> RangeReduction:
        kept = {name: request.top_k if name == "own" and request.top_k else int(request.agrees) for name in operands.positions}
        workers.append({name: _TopLogits(rows, kept[name]) for name, (rows, _) in operands.positions.items()})
        return partial(_reduce_range, request, operands, workers[-1], logits)

    sums = add_token_ids(combine(reduce_ranges(request, new_worker)), [_largest_tokens(request, top) for top in workers])
    if logits is None:
        return sums
    normalisers = _pack_normalisers(operands, sums)
    return replace(
        sums, second=add_sums(reduce_ranges(request, lambda: partial(_look_again, request, operands, sums, normalisers, logits)))
    )


@dataclass(frozen=True)
class _Operands:
    """What every range reads. `positions` holds, by set of policies, the number of rows and the first vector of `packed`."""

    packed: Tensor
    positions: dict[str, tuple[int, int]]
    bias: Tensor | None
    targets: Tensor | None
    dot: bool
    product_alone: bool

    @property
    def lanes(self) -> int:
        """Lanes of the SIMD vectors that hold all rows, those without a row included."""
        lanes: int = required_library().layerlens_lanes()
        return lanes * max(first - (-rows // lanes) for rows, first in self.positions.values())

    @classmethod
    def of(cls, request: ReadoutRequest, dot: bool, product_alone: bool) -> _Operands:
        vectors = {"own": request.hidden, **request.anchors}
        packed, positions = _pack({name: vectors[name] for name in PACKED_ORDER if name in vectors}, dot)
        bias = None if request.unembedding.bias is None else request.unembedding.bias.float().contiguous()
        targets = None if request.targets is None else request.targets.contiguous()
        return cls(packed, positions, bias, targets, dot, product_alone)


class _TopLogits:
    """The k largest logits of each row and their tokens, in all ranges that one thread has reduced so far."""

    def __init__(self, rows: int, k: int):
        self.logits = torch.full((rows, k), -torch.inf)
        self.ids = torch.zeros((rows, k), dtype=torch.long)


class _RangeMoments:
    """The accumulators of one set of policies in one range, and the struct by which C++ writes to them while this object lives."""

    def __init__(self, rows: int, first_vector: int, top: _TopLogits):
        self.rows = rows
        self.m = torch.full((_whole_vectors(rows),), -torch.inf)
        self.S, self.A = torch.zeros(2, _whole_vectors(rows), dtype=torch.float64)
        moments, largest = ([tensor.data_ptr() for tensor in group] for group in ((self.m, self.S, self.A), (top.logits, top.ids)))
        self.struct = PolicySet(rows, first_vector, *moments, top.logits.shape[1], *largest)

    @property
    def moments(self) -> Moments:
        return Moments(*(values[: self.rows] for values in (self.m, self.S, self.A)))


def _reduce_range(
    request: ReadoutRequest,
    operands: _Operands,
    top: dict[str, _TopLogits],
    logits: Tensor | None,
    start: int,
    stop: int,
) -> PartialSums:
    """The accumulators of tokens start…stop-1. With memory for the logits of the vocabulary, [tokens, lanes], those of the range stay."""
    unembedding, rows = request.unembedding, len(request.hidden)
    sets = {name: _RangeMoments(*position, top[name]) for name, position in operands.positions.items()}
    target_logit = None if operands.targets is None else torch.full((rows,), -torch.inf)
    kl, kl_from = (torch.zeros(_whole_vectors(rows), dtype=torch.float64) if asked else None for asked in (request.kl, request.kl_from))
    kept = None if logits is None else logits[start * operands.lanes :]
    absent = PolicySet()
    call = RangePass(
        *map(_address, (operands.packed, unembedding.weight, operands.bias)),
        unembedding.weight.shape[1],
        start,
        stop,
        unembedding.weight.dtype == torch.bfloat16,
        operands.dot,
        operands.product_alone,
        unembedding.scale,
        1 / unembedding.temperature,
        *(sets[name].struct if name in sets else absent for name in ("own", "final", "reference")),
        *map(_address, (operands.targets, target_logit, kl, kl_from, kept)),
    )
    required_library().layerlens_pass(ctypes.byref(call))
    kl, kl_from = (None if values is None else values[:rows] for values in (kl, kl_from))
    return PartialSums(sets["own"].moments, {name: sets[name].moments for name in request.anchors}, target_logit, kl, kl_from)


def _pack_normalisers(operands: _Operands, sums: PartialSums) -> tuple[Tensor, Tensor]:
    """m and log S of each row in the lane that holds it, [lanes] each, float32."""
    m, log_S = torch.zeros(2, operands.lanes)
    lanes = required_library().layerlens_lanes()
    for name, (rows, first) in operands.positions.items():
        moments = sums.own if name == "own" else sums.anchors[name]
        place = slice(first * lanes, first * lanes + rows)
        m[place], log_S[place] = moments.m, moments.S.log()
    return m, log_S


def _look_again(
    request: ReadoutRequest,
    operands: _Operands,
    sums: PartialSums,
    normalisers: tuple[Tensor, Tensor],
    logits: Tensor,
    start: int,
    stop: int,
) -> dict[str, Tensor]:
    """What second_look.py sums, over the tokens start…stop-1."""
    found = {name: torch.zeros(len(request.hidden), dtype=torch.float64) for name in request.second}
    (own_rows, own_first), (final_rows, final_first) = operands.positions["own"], operands.positions.get("final", (0, 0))
    target_logit = None if sums.target_logit is None else sums.target_logit.float()
    call = RangeLook(
        *map(_address, (logits[start * operands.lanes :], *normalisers)),
        operands.lanes,
        start,
        stop,
        *(own_first, own_rows, final_first, final_rows),
        *map(_address, (operands.targets, target_logit, *(found.get(name) for name in SECOND_LOOK_ORDER))),
    )
    required_library().layerlens_look(ctypes.byref(call))
    return found


def _largest_tokens(request: ReadoutRequest, top: dict[str, _TopLogits]) -> LargestTokens:
    argmax = {name: (of.logits[:, 0], of.ids[:, 0]) for name, of in top.items()} if request.agrees else {}
    return LargestTokens(argmax, (top["own"].logits, top["own"].ids) if request.top_k else None)


def _pack(sets: dict[str, Tensor], dot: bool) -> tuple[Tensor, dict[str, tuple[int, int]]]:
    """The vectors of all sets in the layout that C++ reads, and the number of rows and the first vector of each set.

    A unit of 32 bits is a float, or with `dot` a pair of bfloat16.
    """
    loaded = required_library()
    lanes, panel, first = loaded.layerlens_lanes(), loaded.layerlens_panel(), 0
    positions = {}
    for name, rows in sets.items():
        positions[name] = len(rows), first
        first += -(-len(rows) // lanes)
    d_model = sets["own"].shape[1]
    packed = torch.zeros((-(-first * lanes // panel), d_model // 2 if dot else d_model, panel), dtype=torch.int32)
    for name, rows in sets.items():
        rows = (rows if rows.dtype in DTYPES else rows.float()).contiguous()
        is_bf16 = rows.dtype == torch.bfloat16
        loaded.layerlens_pack(rows.data_ptr(), len(rows), d_model, is_bf16, dot, positions[name][1], packed.data_ptr())
    return packed, positions


def _whole_vectors(rows: int) -> int:
    """Numbers in the SIMD vectors that hold a number for each row."""
    lanes: int = required_library().layerlens_lanes()
    return -(-rows // lanes) * lanes


def _address(tensor: Tensor | None) -> int | None:
    return None if tensor is None else tensor.data_ptr()
