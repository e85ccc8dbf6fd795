"""Micro-batches without the padding that ends all of their answers."""

from __future__ import annotations

from collections.abc import Iterator

from torch import Tensor
from torch.nn.functional import pad


def without_common_padding(mask: Tensor, answer: int, rows: int) -> Iterator[tuple[slice, int]]:
    """Yields the rows of each micro-batch of at most `rows` rows, and how many columns of padding end all of its answers.

    A rollout is padded to its longest answer, and TRL 1.16 cuts it into micro-batches by rows alone, so that 7,168 columns are
    computed for a micro-batch whose longest answer has a thousand tokens. Columns behind the last token change nothing: no token
    sees them. Those in front of a prompt stay, since some architectures count positions from the first column.

    Args:
        mask: rows x (prompt + answer), 1 on tokens and 0 on padding; answers are padded on the right.
        answer: columns of the answer, at least one of which is kept.
        rows: rows of a micro-batch.
    """
    width = mask.size(1)
    for start in range(0, mask.size(0), rows):
        part = slice(start, min(start + rows, mask.size(0)))
        used = mask[part].any(0).nonzero()
        last = int(used[-1]) + 1 if len(used) else 0
        yield part, min(width - last, answer - 1)


def padded(values: Tensor, columns: int) -> Tensor:
    """`values` with this many more columns of zeros on the right."""
    return pad(values, (0, columns))
