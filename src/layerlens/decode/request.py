"""What one pass over the vocabulary has to compute, and how many rows go through the vocabulary together."""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import accumulate

import torch
from jaxtyping import Float, Int
from torch import Tensor

from layerlens.decode.unembedding import Unembedding

SECOND_LOOK = ("js", "kl_from_final", "rank", "renyi")
"""What needs each policy's normaliser or its target's logit first, so that logits are read twice."""

NEEDS = {"logp": "targets", "rank": "targets", "kl_from": "reference", **dict.fromkeys(("kl", "agrees", "js", "kl_from_final"), "final")}
"""The argument of `readout` that a number needs."""

VECTOR_ELEMENTS = {"cpu": 1 << 20, "cuda": 1 << 25}
"""Numbers (rows · d) in the vectors that go through the vocabulary together, by device type. Memory grows with them, but the
unembedding is read once for all of them."""

KEPT_LOGITS = {"cpu": 1 << 25, "cuda": 1 << 28}
"""Logits that are kept for a second look (`second_look.py`), by device type: float32 each, so 128 MiB on a CPU."""

MOST_ROWS = 4096
"""Largest number of rows that go through the vocabulary together, however small d is: partial sums of every row take memory too."""


class KeptLogits:
    """Memory for logits, which is asked of the system once: new memory costs as much as half of a pass over the vocabulary."""

    def __init__(self) -> None:
        self._memory = torch.empty(0)

    def take(self, size: int, device: torch.device) -> Float[Tensor, " size"]:
        """Memory for `size` float32 numbers, which the next call gives away again."""
        if len(self._memory) < size or self._memory.device != device:
            self._memory = torch.empty(size, dtype=torch.float32, device=device)
        return self._memory[:size]


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
    second: frozenset[str] = frozenset()
    """What is asked for that takes a second look at the logits: any of SECOND_LOOK."""
    memory: KeptLogits = field(default_factory=KeptLogits)
    """Where logits are kept for a second look. Requests that run one after another can share it."""

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
    def states(self) -> int:
        """Number of states that are stacked in `hidden`."""
        return len(self.hidden) // min(self.row_counts.values())

    @property
    def row_slices(self) -> dict[str, slice]:
        """The rows of `all_vectors` that belong to "own" and to each anchor."""
        counts = self.row_counts
        return {name: slice(end - count, end) for (name, count), end in zip(counts.items(), accumulate(counts.values()), strict=True)}


def rows_at_once(unembedding: Unembedding, states: int, second_look: bool = False) -> int:
    """Rows of each of `states` stacked states, anchors counted among them, that go through the vocabulary together.

    With a `second_look` their logits must fit `KEPT_LOGITS`.
    """
    vocabulary, d_model = unembedding.weight.shape
    elements, kept = (limits.get(unembedding.weight.device.type, limits["cpu"]) for limits in (VECTOR_ELEMENTS, KEPT_LOGITS))
    rows = min(MOST_ROWS, elements // d_model, kept // vocabulary if second_look else MOST_ROWS)
    return max(1, rows // max(1, states))
