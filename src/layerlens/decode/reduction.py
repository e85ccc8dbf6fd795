"""What a pass does with each chunk of logits: sums of every row (`sums.py` says which), and the tokens of the largest logits."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float, Int
from torch import Tensor

from layerlens.decode.moments import Moments, PartialSums, cross_sum
from layerlens.decode.request import ReadoutRequest

BLOCK_ELEMENTS = 1 << 16
"""Logits that are worked on at a time on a CPU, so that all that is made of them stays in the cache."""

CELL = 32
"""Logits of which only the largest is looked at first, in a search for the k largest of all."""


def sum_block(
    x: Float[Tensor, "stack rows chunk"],
    y_final: Float[Tensor, "rows chunk"] | None = None,
    e_reference: Float[Tensor, "rows chunk"] | None = None,
) -> list[Float[Tensor, "stack rows"]]:
    """m, S and A of each row; then Σ e^(x-m) y_final and Σ e_reference (x-m), where these are given."""
    m = x.amax(-1)
    y = x - m[..., None]
    e = y.exp()
    cross = [] if e_reference is None else [(e_reference * y).sum(-1)]
    sums = [m, e.sum(-1), y.mul_(e).sum(-1)]
    return [*sums, *([] if y_final is None else [e.mul_(y_final).sum(-1)]), *cross]


@dataclass(frozen=True)
class Found:
    """Token ids that a part of the vocabulary holds: of each policy's largest logit, and of the k largest, with these logits."""

    best: dict[str, tuple[Float[Tensor, " _"], Int[Tensor, " _"]]]
    top: tuple[Float[Tensor, "n k"], Int[Tensor, "n k"]] | None


class Reducer:
    """In torch. One for each thread; it sees chunks in the order of the vocabulary, though not all of them."""

    block_elements = BLOCK_ELEMENTS
    sum_block = staticmethod(sum_block)

    def __init__(self, request: ReadoutRequest):
        self.request = request
        device = request.hidden.device
        lengths = request.lengths
        self.rows = min(lengths.values())
        self.best = {name: _Best(length, device) for name, length in lengths.items()} if request.agrees else {}
        self.top = TopK(len(request.hidden), request.top_k, device) if request.top_k else None

    def take(self, x: dict[str, Float[Tensor, "_ chunk"]], start: int) -> PartialSums:
        """Sums of a chunk of logits whose first token is `start`, by policy: "own" and the anchors, which it overwrites."""
        anchors = {name: Moments(*self._sums(x[name])) for name in self.request.anchors}
        y = {name: x[name].sub_(moments.m[:, None]) for name, moments in anchors.items()}
        m, S, A, *cross = self._sums(
            x["own"], y["final"] if self.request.kl else None, y["reference"].exp() if self.request.kl_from else None
        )
        own = Moments(m, S, A)
        sums = PartialSums(own, anchors, self._target(x["own"], start))
        if self.request.kl:
            sums = replace(sums, kl=cross_sum(own, anchors["final"], cross[0]))
        if self.request.kl_from:
            sums = replace(sums, kl_from=cross_sum(anchors["reference"], own, cross[-1]))
        for name, best in self.best.items():
            best.update(x[name], anchors.get(name, own).m, start)
        if self.top is not None:
            self.top.take(x["own"], start)
        return sums

    @property
    def found(self) -> Found:
        return Found({name: (best.m, best.ids) for name, best in self.best.items()}, (self.top.values, self.top.ids) if self.top else None)

    def _sums(self, x: Float[Tensor, "_ chunk"], *cross: Float[Tensor, "rows chunk"] | None) -> list[Float[Tensor, " _"]]:
        stacked = x.view(-1, self.rows, x.shape[1])
        blocks = _blocks(len(stacked), self.rows, max(1, self.block_elements // x.shape[1]))
        parts = [self.sum_block(stacked[states, rows], *(y if y is None else y[rows] for y in cross)) for states, rows in blocks]
        return [torch.cat([value.flatten() for value in values]) for values in zip(*parts, strict=True)]

    def _target(self, x: Float[Tensor, "n chunk"], start: int) -> Float[Tensor, " n"] | None:
        """The logit of each row's target, -inf where the chunk does not hold it."""
        if self.request.targets is None:
            return None
        where = self.request.targets - start
        here = (where >= 0) & (where < x.shape[1])
        return x.gather(1, where.clamp(0, x.shape[1] - 1)[:, None])[:, 0].masked_fill(~here, -torch.inf)


def with_ids(sums: PartialSums, found: Sequence[Found]) -> PartialSums:
    """The sums of the whole vocabulary, with the token ids that its parts hold."""
    if found[0].best:
        argmax = {name: first(*map(torch.stack, zip(*(part.best[name] for part in found), strict=True))) for name in found[0].best}
        anchors = {name: replace(moments, argmax=argmax[name]) for name, moments in sums.anchors.items()}
        sums = replace(sums, own=replace(sums.own, argmax=argmax["own"]), anchors=anchors)
    tops = [part.top for part in found if part.top is not None]
    if tops:
        values, ids = (torch.cat(part, dim=-1) for part in zip(*tops, strict=True))
        ids, order = ids.sort(dim=-1)  # of equal logits the lowest token first, whichever thread has met it
        values, order = values.gather(-1, order).sort(dim=-1, descending=True, stable=True)
        k = tops[0][0].shape[1]
        sums = replace(sums, top_values=values[:, :k], top_ids=ids.gather(-1, order)[:, :k])
    return sums


def _blocks(stack: int, rows: int, size: int) -> Iterator[tuple[slice, slice]]:
    """Cuts stack × rows into blocks of about `size` rows, in order: several states, or a part of one."""
    if size >= rows:
        states = size // rows
        yield from ((slice(first, first + states), slice(None)) for first in range(0, stack, states))
    else:
        yield from ((slice(state, state + 1), slice(first, first + size)) for state in range(stack) for first in range(0, rows, size))


class _Best:
    """The token of the largest logit of each row so far: looked for only in rows whose chunk holds a larger one than before."""

    def __init__(self, n: int, device: torch.device):
        self.m = torch.full((n,), -torch.inf, device=device)
        self.ids = torch.zeros(n, dtype=torch.long, device=device)

    def update(self, x: Float[Tensor, "n chunk"], m: Float[Tensor, " n"], start: int) -> None:
        better = (m > self.m).nonzero()[:, 0]
        if len(better):
            self.ids[better] = x[better].argmax(-1) + start
            self.m = torch.maximum(self.m, m)


class TopK:
    """The k largest logits of each row so far."""

    def __init__(self, n: int, k: int, device: torch.device):
        self.values = torch.full((n, k), -torch.inf, device=device)
        self.ids = torch.zeros((n, k), dtype=torch.long, device=device)

    def take(self, x: Float[Tensor, "n chunk"], start: int) -> None:
        """Takes in a chunk: the few logits in it that are larger than a row's k-th so far, or all rows where they are many."""
        least, cells = self.values[:, -1:], x.shape[1] // CELL
        left = cells * CELL
        row, cell = (x[:, :left].view(len(x), CELL, cells).amax(1) > least).nonzero(as_tuple=True)
        if len(row) > self.values.numel():
            return self.take_all(x, start)
        columns = cell[:, None] + torch.arange(0, left, cells or 1, device=x.device)
        pair, place = (x[row[:, None], columns] > least[row]).nonzero(as_tuple=True)
        last = (x[:, left:] > least).nonzero(as_tuple=True)
        row, order = torch.cat([row[pair], last[0]]).sort(stable=True)
        column = torch.cat([columns[pair, place], last[1] + left])[order]
        if len(row):
            starts = torch.cat([torch.zeros_like(row[:1]), (row[1:] != row[:-1]).nonzero()[:, 0] + 1])
            slot = torch.zeros_like(row).index_fill_(0, starts[1:], 1).cumsum(0)
            at = slot, torch.arange(len(row), device=x.device) - starts[slot]
            values = x.new_full((len(starts), int(at[1].max()) + 1), -torch.inf)
            ids = torch.zeros_like(values, dtype=torch.long)
            values[at], ids[at] = x[row, column], column + start
            self._join(row[starts], values, ids)

    def take_all(self, x: Float[Tensor, "n chunk"], start: int) -> None:
        """The same without looking at what a chunk holds, for which a GPU would have to be waited for."""
        values, ids = _largest(x, self.values.shape[1])
        self._join(slice(None), values, ids + start)

    def _join(self, rows: Int[Tensor, " rows"] | slice, values: Float[Tensor, "rows more"], ids: Int[Tensor, "rows more"]) -> None:
        values, ids = torch.cat([self.values[rows], values], dim=-1), torch.cat([self.ids[rows], ids], dim=-1)
        self.values[rows], order = values.topk(self.values.shape[1], dim=-1)
        self.ids[rows] = ids.gather(-1, order)


def _largest(x: Float[Tensor, "n chunk"], k: int) -> tuple[Float[Tensor, "n k"], Int[Tensor, "n k"]]:
    """topk in two steps: the k largest logits lie in the k cells whose largest ones are largest."""
    n, chunk = x.shape
    cells = chunk // CELL
    if k * 4 > cells:
        return x.topk(min(k, chunk), dim=-1)
    left = cells * CELL
    cell = x[:, :left].view(n, CELL, cells).amax(1).topk(k, dim=-1).indices
    ids = (cell[..., None] + torch.arange(0, left, cells, device=x.device)).flatten(1)
    ids = torch.cat([ids, torch.arange(left, chunk, device=x.device).expand(n, -1)], dim=1)
    values, order = x.gather(1, ids).topk(k, dim=-1)
    return values, ids.gather(1, order)


def first(m: Float[Tensor, "parts n"], ids: Int[Tensor, "parts n"]) -> Int[Tensor, " n"]:
    """The token of the largest logit of all parts; of equal ones the lowest."""
    return ids.masked_fill(m < m.amax(0), torch.iinfo(torch.long).max).amin(0)
