"""The reduction of a chunk of logits in torch: online-softmax accumulators (`moments.py`) and the largest tokens of every row."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import torch
from jaxtyping import Float
from torch import Tensor

from layerlens.decode.moments import Moments, PartialSums, divergence_sum
from layerlens.decode.request import ReadoutRequest
from layerlens.decode.top_tokens import LargestTokens, RunningArgmax, RunningTopK

BLOCK_ELEMENTS = 1 << 16
"""Logits that are reduced at a time on a CPU, so that all temporary arrays stay in the cache."""


def sum_block(
    x: Float[Tensor, "stack rows chunk"],
    y_final: Float[Tensor, "rows chunk"] | None = None,
    e_reference: Float[Tensor, "rows chunk"] | None = None,
) -> list[Float[Tensor, "stack rows"]]:
    """m, S and A of each row of logits x; then, if given, Σ e^(x-m) y_final and Σ e_reference (x-m).

    y_final are the final policy's logits minus their maximum, e_reference is e^ of the reference policy's logits minus theirs.
    """
    m = x.amax(-1)
    y = x - m[..., None]
    e = y.exp()
    reference_sum = [] if e_reference is None else [(e_reference * y).sum(-1)]
    moments = [m, e.sum(-1), y.mul_(e).sum(-1)]
    return [*moments, *([] if y_final is None else [e.mul_(y_final).sum(-1)]), *reference_sum]


class Reducer:
    """Reduces chunks of logits for one thread. Chunks must come in the order of the vocabulary; some may be left to other threads."""

    block_elements = BLOCK_ELEMENTS
    sum_block = staticmethod(sum_block)

    def __init__(self, request: ReadoutRequest):
        self.request = request
        device = request.hidden.device
        counts = request.row_counts
        self.rows = min(counts.values())
        self.argmax = {name: RunningArgmax(count, device) for name, count in counts.items()} if request.agrees else {}
        self.top = RunningTopK(len(request.hidden), request.top_k, device) if request.top_k else None

    def reduce(self, logits: dict[str, Float[Tensor, "_ chunk"]], first_token: int) -> PartialSums:
        """The accumulators of the chunk of the vocabulary that begins at `first_token`.

        `logits` holds the chunk's logits by policy, "own" and each anchor. Those of the anchors are overwritten.
        """
        anchors = {name: Moments(*self._sums(logits[name])) for name in self.request.anchors}
        y = {name: logits[name].sub_(moments.m[:, None]) for name, moments in anchors.items()}
        m, S, A, *shifted = self._sums(
            logits["own"], y["final"] if self.request.kl else None, y["reference"].exp() if self.request.kl_from else None
        )
        own = Moments(m, S, A)
        sums = PartialSums(own, anchors, self._target_logit(logits["own"], first_token))
        if self.request.kl:
            sums = replace(sums, kl=divergence_sum(own, anchors["final"], shifted[0]))
        if self.request.kl_from:
            sums = replace(sums, kl_from=divergence_sum(anchors["reference"], own, shifted[-1]))
        for name, argmax in self.argmax.items():
            argmax.update(logits[name], anchors.get(name, own).m, first_token)
        if self.top is not None:
            self.top.update(logits["own"], first_token)
        return sums

    @property
    def largest(self) -> LargestTokens:
        """The tokens of the largest logits in all chunks so far."""
        argmax = {name: (running.logits, running.ids) for name, running in self.argmax.items()}
        return LargestTokens(argmax, (self.top.logits, self.top.ids) if self.top else None)

    def _sums(self, x: Float[Tensor, "_ chunk"], *anchor: Float[Tensor, "rows chunk"] | None) -> list[Float[Tensor, " _"]]:
        stacked = x.view(-1, self.rows, x.shape[1])
        cuts = blocks(len(stacked), self.rows, max(1, self.block_elements // x.shape[1]))
        parts = [self.sum_block(stacked[states, rows], *(y if y is None else y[rows] for y in anchor)) for states, rows in cuts]
        return [torch.cat([value.flatten() for value in values]) for values in zip(*parts, strict=True)]

    def _target_logit(self, x: Float[Tensor, "n chunk"], first_token: int) -> Float[Tensor, " n"] | None:
        """The logit of each row's target, -inf if the chunk does not hold it."""
        if self.request.targets is None:
            return None
        column = self.request.targets - first_token
        inside = (column >= 0) & (column < x.shape[1])
        return x.gather(1, column.clamp(0, x.shape[1] - 1)[:, None])[:, 0].masked_fill(~inside, -torch.inf)


def blocks(stack: int, rows: int, size: int) -> Iterator[tuple[slice, slice]]:
    """Cuts stack × rows into consecutive blocks of about `size` rows, each of several whole states or of a part of one state."""
    if size >= rows:
        states = size // rows
        yield from ((slice(first, first + states), slice(None)) for first in range(0, stack, states))
    else:
        yield from ((slice(state, state + 1), slice(first, first + size)) for state in range(stack) for first in range(0, rows, size))
