"""What one pass over the vocabulary has to compute, and how many rows go through the vocabulary together."""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import accumulate

import torch
from jaxtyping import Float, Int
from torch import Tensor

from layerlens.decode.unembedding import Unembedding

VECTOR_ELEMENTS = {"cpu": 1 << 20, "cuda": 1 << 25}
"""Numbers (rows · d) in the vectors that go through the vocabulary together, by device type. Memory grows with them, but the
unembedding is read once for all of them."""

MOST_ROWS = 4096
"""Largest number of rows that go through the vocabulary together, however small d is: partial sums of every row take memory too."""


@dataclass(frozen=True)
class ReadoutRequest:
    """What one pass over the vocabulary has to compute. All tensors are on the device of the unembedding.

    `hidden` holds a stack of states one after the other, n = states · rows. `anchors` holds the policies that every state of the
    stack is compared with, row by row: "final", "reference" or both. `targets` holds a token id per row of `hidden`; a negative id
    stands for no token.
    """

    unembedding: Unembedding
    hidden: Float[Tensor, "n d"]
    anchors: dict[str, Float[Tensor, "rows d"]] = field(default_factory=dict)
    targets: Int[Tensor, " n"] | None = None
    kl: bool = False
    """Whether KL(π ‖ π_final) is asked for."""
    kl_from: bool = False
    """Whether KL(π_reference ‖ π) is asked for."""
    agrees: bool = False
    """Whether the most likely token of every policy, anchors included, is asked for."""
    top_k: int = 0
    """How many of the most likely tokens of every row of `hidden` are asked for."""

    @property
    def vocabulary(self) -> int:
        """Number of tokens V."""
        return self.unembedding.weight.shape[0]

    @property
    def all_vectors(self) -> Float[Tensor, "n_all d"]:
        """The rows of `hidden`, then those of each anchor; `row_slices` says which rows belong to which."""
        return torch.cat([self.hidden, *self.anchors.values()]) if self.anchors else self.hidden.contiguous()

    @property
    def row_counts(self) -> dict[str, int]:
        """Number of rows of "own" (`hidden`) and of each anchor, in the order of `all_vectors`."""
        return {"own": len(self.hidden), **{name: len(rows) for name, rows in self.anchors.items()}}

    @property
    def total_rows(self) -> int:
        """Number of rows of `all_vectors`."""
        return sum(self.row_counts.values())

    @property
    def row_slices(self) -> dict[str, slice]:
        """The rows of `all_vectors` that belong to "own" and to each anchor."""
        counts = self.row_counts
        return {name: slice(end - count, end) for (name, count), end in zip(counts.items(), accumulate(counts.values()), strict=True)}


def rows_at_once(unembedding: Unembedding, states: int) -> int:
    """Rows of each of `states` stacked states, anchors counted among them, that go through the vocabulary together."""
    elements = VECTOR_ELEMENTS.get(unembedding.weight.device.type, VECTOR_ELEMENTS["cpu"])
    return max(1, min(MOST_ROWS, elements // unembedding.weight.shape[1]) // max(1, states))
