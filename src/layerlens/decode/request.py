"""What one pass over the vocabulary has to find out."""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import accumulate

import torch
from jaxtyping import Float, Int
from torch import Tensor

from layerlens.decode.unembedding import Unembedding


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
