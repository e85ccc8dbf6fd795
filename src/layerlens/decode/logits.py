"""How a model turns a vector into logits, and what is asked of them."""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import accumulate

import torch
from jaxtyping import Float, Int
from torch import Tensor


@dataclass(frozen=True)
class Logits:
    """How a model turns a vector into logits: cap(scale · weight · h + bias) / temperature."""

    weight: Float[Tensor, "vocab d"]
    bias: Float[Tensor, " vocab"] | None = None
    scale: float = 1.0
    softcap: float | None = None
    temperature: float = 1.0

    @property
    def plain(self) -> bool:
        """Whether logits are the product alone."""
        return self.bias is None and self.softcap is None and self.scale == self.temperature == 1.0

    def whole(self, hidden: Float[Tensor, "*rows d"]) -> Float[Tensor, "*rows vocab"]:
        """All logits, float32: for a few rows, to sample from."""
        return self.finish_(hidden.to(self.weight.device, torch.float32) @ self.weight.float().T, 0, self.weight.shape[0])

    def finish_(self, product: Float[Tensor, "*rows chunk"], start: int, stop: int) -> Float[Tensor, "*rows chunk"]:
        """Makes logits, in place, of the float32 product with the weights of tokens start...stop-1."""
        if self.scale != 1.0:
            product *= self.scale
        if self.bias is not None:
            product += self.bias[start:stop].float()
        if self.softcap is not None:
            product.div_(self.softcap).tanh_().mul_(self.softcap)
        if self.temperature != 1.0:
            product /= self.temperature
        return product


@dataclass(frozen=True)
class Task:
    """What one pass over the vocabulary has to find out. All tensors are on the device of the unembedding.

    Rows are stack · rows of hidden vectors, the rows of one state side by side; anchors ("final", "reference") are the policies
    that every state of the stack is compared with, row by row.
    """

    logits: Logits
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
    def vocab(self) -> int:
        return self.logits.weight.shape[0]

    @property
    def states(self) -> Float[Tensor, "n_all d"]:
        """All vectors one below the other: the task's own, then the anchors, as further states of the stack. `cuts` says whose is where."""
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
