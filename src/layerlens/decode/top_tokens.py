"""The tokens of each row's largest logits, found chunk by chunk: the most likely one (argmax) and the k most likely ones (top k)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float, Int
from torch import Tensor

from layerlens.decode.moments import PartialSums

CELL = 32
"""Logits in a cell. A search for the k largest logits looks at the maximum of each cell first."""


@dataclass(frozen=True)
class LargestTokens:
    """The largest logits in a part of the vocabulary and their tokens.

    `argmax` holds the largest logit of every row and its token, by policy ("own" and each anchor); `top` holds the k largest of every row
    of "own", or None if they were not asked for.
    """

    argmax: dict[str, tuple[Float[Tensor, " _"], Int[Tensor, " _"]]]
    top: tuple[Float[Tensor, "n k"], Int[Tensor, "n k"]] | None


def add_token_ids(sums: PartialSums, parts: Sequence[LargestTokens]) -> PartialSums:
    """`sums` of the whole vocabulary, with argmax and top k filled in from the parts of the vocabulary that hold them."""
    if parts[0].argmax:
        argmax = {
            name: argmax_of_parts(*map(torch.stack, zip(*(part.argmax[name] for part in parts), strict=True))) for name in parts[0].argmax
        }
        anchors = {name: replace(moments, argmax=argmax[name]) for name, moments in sums.anchors.items()}
        sums = replace(sums, own=replace(sums.own, argmax=argmax["own"]), anchors=anchors)
    tops = [part.top for part in parts if part.top is not None]
    if tops:
        logits, ids = (torch.cat(part, dim=-1) for part in zip(*tops, strict=True))
        ids, order = ids.sort(dim=-1)  # of equal logits the lowest token comes first, whichever thread has met it
        logits, order = logits.gather(-1, order).sort(dim=-1, descending=True, stable=True)
        k = tops[0][0].shape[1]
        sums = replace(sums, top_logits=logits[:, :k], top_ids=ids.gather(-1, order)[:, :k])
    return sums


def argmax_of_parts(logits: Float[Tensor, "parts n"], ids: Int[Tensor, "parts n"]) -> Int[Tensor, " n"]:
    """The token of the largest logit of all parts, given each part's largest logit and its token; of equal logits the lowest token."""
    return ids.masked_fill(logits < logits.amax(0), torch.iinfo(torch.long).max).amin(0)


class RunningArgmax:
    """The largest logit of each row so far and its token.

    On a CPU only rows that gain a larger logit are searched for the token. Which rows these are, the host would have to wait to learn
    from a GPU, so there every row is searched.
    """

    def __init__(self, rows: int, device: torch.device):
        self.logits = torch.full((rows,), -torch.inf, device=device)
        self.ids = torch.zeros(rows, dtype=torch.long, device=device)

    def update(self, x: Float[Tensor, "n chunk"], maxima: Float[Tensor, " n"], first_token: int) -> None:
        """Takes in the chunk of logits that begins at `first_token`, given each row's maximum in it."""
        gained = maxima > self.logits
        if x.device.type != "cpu":
            self.ids = torch.where(gained, x.argmax(-1) + first_token, self.ids)
        elif len(better := gained.nonzero()[:, 0]):
            self.ids[better] = x[better].argmax(-1) + first_token
        self.logits = torch.maximum(self.logits, maxima)


class RunningTopK:
    """The k largest logits of each row so far and their tokens."""

    def __init__(self, rows: int, k: int, device: torch.device):
        self.logits = torch.full((rows, k), -torch.inf, device=device)
        self.ids = torch.zeros((rows, k), dtype=torch.long, device=device)

    def update(self, x: Float[Tensor, "n chunk"], first_token: int) -> None:
        """Takes in the chunk of logits that begins at `first_token`.

        On a CPU merges only the logits that exceed their row's k-th largest so far. If the chunk holds too many of them, or lies on a
        GPU, merges every row.
        """
        if x.device.type != "cpu":
            return self.update_every_row(x, first_token)
        least, cells = self.logits[:, -1:], x.shape[1] // CELL
        in_cells = cells * CELL
        row, cell = (x[:, :in_cells].view(len(x), CELL, cells).amax(1) > least).nonzero(as_tuple=True)
        if len(row) > self.logits.numel():
            return self.update_every_row(x, first_token)
        columns = cell[:, None] + torch.arange(0, in_cells, cells or 1, device=x.device)
        pair, place = (x[row[:, None], columns] > least[row]).nonzero(as_tuple=True)
        last = (x[:, in_cells:] > least).nonzero(as_tuple=True)
        row, order = torch.cat([row[pair], last[0]]).sort(stable=True)
        column = torch.cat([columns[pair, place], last[1] + in_cells])[order]
        if len(row):
            # candidates of a row lie side by side: number the rows that have any, and the candidates within each
            starts = torch.cat([torch.zeros_like(row[:1]), (row[1:] != row[:-1]).nonzero()[:, 0] + 1])
            slot = torch.zeros_like(row).index_fill_(0, starts[1:], 1).cumsum(0)
            at = slot, torch.arange(len(row), device=x.device) - starts[slot]
            logits = x.new_full((len(starts), int(at[1].max()) + 1), -torch.inf)
            ids = torch.zeros_like(logits, dtype=torch.long)
            logits[at], ids[at] = x[row, column], column + first_token
            self._merge(row[starts], logits, ids)

    def update_every_row(self, x: Float[Tensor, "n chunk"], first_token: int) -> None:
        """Like `update`, but merges every row, so that nothing has to be copied back from a GPU."""
        logits, ids = _topk_by_cells(x, self.logits.shape[1])
        self._merge(slice(None), logits, ids + first_token)

    def _merge(self, rows: Int[Tensor, " rows"] | slice, logits: Float[Tensor, "rows more"], ids: Int[Tensor, "rows more"]) -> None:
        logits, ids = torch.cat([self.logits[rows], logits], dim=-1), torch.cat([self.ids[rows], ids], dim=-1)
        self.logits[rows], order = logits.topk(self.logits.shape[1], dim=-1)
        self.ids[rows] = ids.gather(-1, order)


def _topk_by_cells(x: Float[Tensor, "n chunk"], k: int) -> tuple[Float[Tensor, "n k"], Int[Tensor, "n k"]]:
    """The k largest logits of each row and their columns, in two steps: they lie in the k cells with the largest maxima."""
    n, chunk = x.shape
    cells = chunk // CELL
    if k * 4 > cells:
        return x.topk(min(k, chunk), dim=-1)
    in_cells = cells * CELL
    cell = x[:, :in_cells].view(n, CELL, cells).amax(1).topk(k, dim=-1).indices
    ids = (cell[..., None] + torch.arange(0, in_cells, cells, device=x.device)).flatten(1)
    ids = torch.cat([ids, torch.arange(in_cells, chunk, device=x.device).expand(n, -1)], dim=1)
    logits, order = x.gather(1, ids).topk(k, dim=-1)
    return logits, ids.gather(1, order)
