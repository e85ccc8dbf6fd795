"""What one pass over the vocabulary has to find out."""

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
    """What one pass over the vocabulary has to find out. All tensors are on the device of the unembedding.

    Rows are stack · rows of hidden vectors, the rows of one state side by side; anchors ("final", "reference") are the policies
    that every state of the stack is compared with, row by row.
    """

    unembedding: Unembedding
    hidden: Float[Tensor, "n d"]
    anchors: dict[str, Float[Tensor, "rows d"]] = field(default_factory=dict)
    targets: Int[Tensor, " n"] | None = None
    kl: bool = False
    """KL(π ‖ anchor "final")."""
    kl_from: bool = False
    """KL(anchor "reference" ‖ π)."""
    agrees: bool = False
    """The most likely token of every policy, anchors included."""
    top_k: int = 0

    @property
    def vocabulary(self) -> int:
        return self.unembedding.weight.shape[0]

    @property
    def states(self) -> Float[Tensor, "n_all d"]:
        """All vectors one below the other: the request's own, then the anchors as further states; `cuts` says which are whose."""
        return torch.cat([self.hidden, *self.anchors.values()]) if self.anchors else self.hidden.contiguous()

    @property
    def lengths(self) -> dict[str, int]:
        """Rows of each set of policies: "own", then the anchors by name."""
        return {"own": len(self.hidden), **{name: len(rows) for name, rows in self.anchors.items()}}

    @property
    def n_states(self) -> int:
        return sum(self.lengths.values())

    @property
    def cuts(self) -> dict[str, slice]:
        """Whose rows of `states` are where."""
        lengths = self.lengths
        return {name: slice(end - length, end) for (name, length), end in zip(lengths.items(), accumulate(lengths.values()), strict=True)}


def rows_at_once(unembedding: Unembedding, states: int) -> int:
    """Rows of each of `states` stacked states, anchors included, that go through the vocabulary together."""
    elements = VECTOR_ELEMENTS.get(unembedding.weight.device.type, VECTOR_ELEMENTS["cpu"])
    return max(1, min(MOST_ROWS, elements // unembedding.weight.shape[1]) // max(1, states))
