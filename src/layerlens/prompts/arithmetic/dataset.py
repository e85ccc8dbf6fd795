"""Problems with worked solutions, in splits that cannot overlap.

The normal form of a problem decides its split, so a held-out problem, or a re-ordered or re-worded twin of one, can
never be drawn for training, whatever the seed.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias

from layerlens.errors import LayerLensError
from layerlens.prompts.arithmetic.kinds import DIFFICULTIES, DRAW, Draft

KINDS = tuple(DRAW)
SPLITS = ("train", "validation", "test")
_HELD_OUT = {0: "validation", 1: "test"}  # twentieths of all normal forms; the other eighteen are for training
_ATTEMPTS = 20_000

Message: TypeAlias = dict[str, str]


class ProblemError(LayerLensError, ValueError):
    """A request for problems that cannot be met."""


@dataclass(frozen=True)
class Problem:
    """A problem: `prompt` are chat messages, `solution` is worked text that ends in the boxed answer."""

    prompt: tuple[Message, ...]
    solution: str
    answer: str
    kind: str
    difficulty: int
    key: str


def split_of(key: str) -> str:
    """The split that a problem's normal form belongs to: 90% train, 5% validation, 5% test."""
    twentieth = int.from_bytes(hashlib.sha256(key.encode()).digest()[:8], "big") % 20
    return _HELD_OUT.get(twentieth, "train")


def problems(
    split: str,
    n: int,
    seed: int,
    kinds: Sequence[str] | None = None,
    difficulties: Sequence[int] | None = None,
    distinct: bool = False,
) -> list[Problem]:
    """`n` problems of a split, the same for the same arguments, spread evenly over kinds and difficulties.

    `distinct=True` never gives two problems with one normal form, and raises ProblemError where there are too few.
    """
    kinds, difficulties = tuple(kinds or KINDS), tuple(difficulties or DIFFICULTIES)
    for given, known in ((split, SPLITS), *((k, KINDS) for k in kinds), *((d, DIFFICULTIES) for d in difficulties)):
        if given not in known:
            raise ProblemError(f"expected one of {', '.join(map(str, known))}, got {given!r}")
    rng = random.Random(f"{split}/{seed}")
    cells = [(kind, difficulty) for kind in kinds for difficulty in difficulties]
    deck: list[tuple[str, int]] = []
    seen: set[str] = set()
    found: list[Problem] = []
    while len(found) < n:
        if not deck:
            deck = rng.sample(cells, len(cells))
        kind, difficulty = deck.pop()
        draft = _draw(split, kind, difficulty, rng, seen if distinct else set())
        seen.add(draft.key)
        message = {"role": "user", "content": draft.prompt}
        found.append(Problem((message,), draft.solution, str(draft.answer), kind, difficulty, draft.key))
    return found


def _draw(split: str, kind: str, difficulty: int, rng: random.Random, seen: set[str]) -> Draft:
    for _ in range(_ATTEMPTS):
        draft = DRAW[kind](difficulty, rng)
        if draft.key not in seen and split_of(draft.key) == split:
            return draft
    raise ProblemError(f"no further {split} problem of kind {kind}, difficulty {difficulty}; ask for fewer, or for distinct=False")
