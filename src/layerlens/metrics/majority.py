"""The majority vote of several answers to one problem."""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Sequence


def majority(results: Sequence[Hashable | None]) -> int | None:
    """The index of the first answer with the most frequent result; of equally frequent ones the one that comes first wins.

    None stands for an answer without a result, which has no vote; if no answer has a result, None is returned (Wang et al. 2022,
    arXiv 2203.11171, "self-consistency").
    """
    votes = Counter(result for result in results if result is not None)
    return results.index(max(votes, key=votes.__getitem__)) if votes else None
