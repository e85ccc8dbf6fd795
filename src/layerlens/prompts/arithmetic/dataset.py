"""Problems with worked solutions, in splits that cannot overlap.

The split of a problem follows from its normal form. So a held-out problem, or one that differs from it only in order or wording, is never
drawn for training, whatever the seed.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias

from layerlens.errors import LayerLensError
from layerlens.prompts.arithmetic.kinds import DIFFICULTIES, GENERATORS, Draft

KINDS = tuple(GENERATORS)
SPLITS = ("train", "validation", "test")
_HELD_OUT = {0: "validation", 1: "test"}  # twentieths of all normal forms; the other eighteen are for training
_MAX_DRAWS = 20_000

Message: TypeAlias = dict[str, str]


class ProblemError(LayerLensError, ValueError):
    """A request for problems that the generator cannot meet."""


@dataclass(frozen=True)
class Problem:
    """A problem with its solution.

    Attributes:
        prompt: the question as chat messages.
        solution: the worked solution, a text that ends in the boxed answer.
        answer: the right answer, an integer as text.
        kind: one of `KINDS`.
        difficulty: 1 (easy) to 4 (hard).
        normal_form: what the split follows from; the same for problems that differ only in order or wording.
    """

    prompt: tuple[Message, ...]
    solution: str
    answer: str
    kind: str
    difficulty: int
    normal_form: str


def split_of(normal_form: str) -> str:
    """The split of all problems with this normal form: 90% train, 5% validation, 5% test."""
    twentieth = int.from_bytes(hashlib.sha256(normal_form.encode()).digest()[:8], "big") % 20
    return _HELD_OUT.get(twentieth, "train")


def problems(
    split: str,
    n: int,
    seed: int,
    kinds: Sequence[str] | None = None,
    difficulties: Sequence[int] | None = None,
    distinct: bool = False,
) -> list[Problem]:
    """Draws problems, spread evenly over kinds and difficulties. Equal arguments give equal problems.

    Args:
        split: train, validation or test.
        n: the number of problems; the first problems do not depend on it.
        seed: of the draw.
        kinds: names from `KINDS`; by default all.
        difficulties: from 1 (easy) to 4 (hard); by default all.
        distinct: whether no two problems may have the same normal form.

    Raises ProblemError for an unknown split, kind or difficulty, or if there are fewer than `n` distinct problems.
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
        seen.add(draft.normal_form)
        message = {"role": "user", "content": draft.prompt}
        found.append(Problem((message,), draft.solution, str(draft.answer), kind, difficulty, draft.normal_form))
    return found


def _draw(split: str, kind: str, difficulty: int, rng: random.Random, seen: set[str]) -> Draft:
    for _ in range(_MAX_DRAWS):
        draft = GENERATORS[kind](difficulty, rng)
        if draft.normal_form not in seen and split_of(draft.normal_form) == split:
            return draft
    raise ProblemError(f"no further {split} problem of kind {kind}, difficulty {difficulty}; ask for fewer, or for distinct=False")
