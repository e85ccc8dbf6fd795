"""Token ids of several texts as one padded batch, and the rows of them that are wanted."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor


class TextBatch:
    """Texts padded on the right, and positions of rows in each of them.

    Attributes:
        ids: token ids, [texts, longest].
        cuts: text i's rows are cuts[i]…cuts[i+1]-1 of all wanted rows.
        targets: the token that follows each wanted row, -1 at the end of a text.
    """

    def __init__(self, ids: Sequence[Int[Tensor, " _"]], keep: Sequence[Int[Tensor, " _"]], names: Sequence[str]):
        self.ids = torch.nn.utils.rnn.pad_sequence(list(ids), batch_first=True)
        self.keep, self.names = list(keep), list(names)
        width = self.ids.shape[1]
        self.flat = torch.cat([rows + number * width for number, rows in enumerate(keep)])
        following = torch.full_like(self.ids, -1)
        for number, tokens in enumerate(ids):
            following[number, : len(tokens) - 1] = tokens[1:]
        self.targets = following.flatten()[self.flat]
        self.cuts = np.cumsum([0, *map(len, keep)])
        self._flat_on = {self.flat.device: self.flat}

    def __len__(self) -> int:
        """The number of wanted rows of all texts."""
        return len(self.flat)

    def rows(self, states: Float[Tensor, "texts longest d"]) -> Float[Tensor, "n d"]:
        """The wanted rows of padded states. Their numbers are copied to a device once."""
        device = states.device
        if device not in self._flat_on:
            self._flat_on[device] = self.flat.to(device)
        return states.flatten(0, 1).index_select(0, self._flat_on[device])

    def numbers_in(self, other: TextBatch) -> Int[Tensor, " _"] | None:
        """The number of each wanted row among those of another batch of the same texts; None if it lacks one of them."""
        found = torch.searchsorted(other.flat, self.flat).clamp_max(max(0, len(other) - 1))
        return found if len(other) and bool((other.flat[found] == self.flat).all()) else None

    def describe_row(self, row: int) -> str:
        """Which token of which sample a wanted row is, in words."""
        number = int(np.searchsorted(self.cuts, row, side="right")) - 1
        return f"token {int(self.keep[number][row - self.cuts[number]])} of sample {self.names[number]}"


def portions(rows: Sequence[int], most: int) -> Iterator[slice]:
    """Consecutive texts that together have at most `most` rows; a text with more rows is alone."""
    first, total = 0, 0
    for number, count in enumerate(rows):
        if number > first and total + count > most:
            yield slice(first, number)
            first, total = number, 0
        total += count
    yield slice(first, len(rows))
