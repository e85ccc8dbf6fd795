"""What one block adds to the residual stream, solved from the outputs of its modules."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from layerlens.errors import ModelLayoutError
from layerlens.models.trace import Call, same

CLOSED = 1e-5
"""Largest difference between a sum and resid_post, as a share of the largest value, at which the sum counts as resid_post."""

ROUGHLY_CLOSED = 1e-8
"""The share of the squared length of resid_post that a sum may miss to be looked at more closely."""

MOST_CONTRIBUTIONS = 4
MOST_SUMS = 20_000
"""Largest number of sums with the same number of addends that are tried."""


class Contribution(NamedTuple):
    """A module of a block, by its path in the block, whose output times a factor is added to the residual stream."""

    path: str
    factor: float


def contributions_of(inside: Mapping[str, Call], before: Tensor, after: Tensor, where: str) -> tuple[float, list[Contribution]]:
    """Solves after = s · (before + Σ f_i · C_i), C_i outputs of modules inside the block, for s, the C_i and the f_i.

    The block's own children are tried first, then all modules inside it. Contributions come in the order their modules ran.

    Of sums that differ in modules with parallel outputs alone, that without factors is meant: on tiny states a norm's output is
    its input times a number.

    Raises ModelLayoutError, naming `where`, if no sum closes, or if two do and none is the other with modules taken apart.
    """
    closest: tuple[float, str] = (math.inf, "nothing")
    for children_only in (True, False):
        candidates = _candidates(inside, before, after, children_only)
        closing, near = _closing_sums(candidates, before, after)
        closest = min(closest, near)
        closing = [one for one in closing if not any(_takes_apart(one[1], other) for _, other in closing)]
        plain = [one for one in closing if all(each.factor == 1 for each in one[1])]
        if len(plain) == 1 and all(_renames(terms, plain[0][1], dict(candidates)) for _, terms in closing):
            closing = plain
        if len(closing) > 1:
            sums = " and ".join(_shown(terms) for _, terms in closing[:3])
            raise ModelLayoutError(f"{where}: what it adds to the residual stream is not unique: {sums} give the same resid_post")
        if closing:
            stream, terms = closing[0]
            return stream, sorted(terms, key=lambda each: inside[each.path].order)
    raise ModelLayoutError(
        f"{where}: no sum of its modules' outputs gives resid_post; resid_pre + {closest[1]} comes closest and misses it by "
        f"{closest[0]:.2g} of its size (tolerance {CLOSED:.0g})"
    )


Sum = tuple[float, list[Contribution]]
"""The factor of the stream, and what is added to it."""


def _closing_sums(candidates: Sequence[tuple[str, Tensor]], before: Tensor, after: Tensor) -> tuple[list[Sum], tuple[float, str]]:
    """All sums of few candidates that close and have no part that closes; and the miss and the text of the closest sum."""
    columns = torch.stack([before.reshape(-1), *(output.reshape(-1) for _, output in candidates)], 1)
    columns, sizes = columns / columns.norm(dim=0), columns.norm(dim=0)
    goal = after.reshape(-1)
    gram, target = columns.T @ columns, columns.T @ goal
    closing: list[Sum] = []
    supports: list[set[int]] = []
    closest: tuple[float, str] = (math.inf, "nothing")
    for size in range(1, min(MOST_CONTRIBUTIONS, len(candidates)) + 1):
        if math.comb(len(candidates), size) > MOST_SUMS:
            break
        chosen = torch.tensor([[0, *each] for each in itertools.combinations(range(1, len(candidates) + 1), size)])
        parts = gram[chosen[:, :, None], chosen[:, None, :]]
        factors = (torch.linalg.pinv(parts, hermitian=True) @ target[chosen][:, :, None])[..., 0]
        missed = 1 - (factors * target[chosen]).sum(1) / (goal @ goal)
        best = int(missed.argmin())
        for number in {best, *torch.nonzero(missed < ROUGHLY_CLOSED)[:, 0].tolist()}:
            support, found = chosen[number], factors[number]
            miss = float((columns[:, support] @ found - goal).abs().max() / goal.abs().max().clamp_min(1e-300))
            stream, *terms = (found / sizes[support]).tolist()
            if abs(stream) < 1e-3:
                continue
            named = [Contribution(candidates[i - 1][0], _round(term / stream)) for i, term in zip(support[1:].tolist(), terms, strict=True)]
            closest = min(closest, (miss, _shown(named)))
            if miss <= CLOSED and not any(smaller <= {*support.tolist()} for smaller in supports):
                supports.append({*support.tolist()})
                closing.append((_round(stream), named))
    return closing, closest


def _takes_apart(fine: Sequence[Contribution], coarse: Sequence[Contribution]) -> bool:
    """Whether a sum is another one with some of its modules replaced by modules inside them."""
    fines, coarses = {each.path for each in fine}, {each.path for each in coarse}
    return fines != coarses and all(any(path.startswith(f"{outer}.") for outer in coarses - fines) for path in fines - coarses)


def _renames(one: Sequence[Contribution], other: Sequence[Contribution], outputs: Mapping[str, Tensor]) -> bool:
    """Whether two sums have the same number of terms, and those that differ are parallel vectors."""
    ours, theirs = {each.path for each in one}, {each.path for each in other}
    return len(ours) == len(theirs) and all(any(_parallel(outputs[a], outputs[b], 1e-3) for b in theirs - ours) for a in ours - theirs)


def _candidates(inside: Mapping[str, Call], before: Tensor, after: Tensor, children_only: bool) -> list[tuple[str, Tensor]]:
    """Modules whose output may be a contribution: of the stream's size, not the stream itself, and each vector once."""
    kept: list[tuple[str, Tensor]] = []
    for path, call in sorted(inside.items(), key=lambda item: (item[0].count("."), item[1].order)):
        if call.output is None or call.output.numel() != before.numel() or (children_only and "." in path):
            continue
        if not float(call.output.abs().max()) or any(_parallel(call.output, other) for other in (before, after)):
            continue
        if not any(same(call.output, other) for _, other in kept):
            kept.append((path, call.output))
    return kept


def _parallel(a: Tensor, b: Tensor, tolerance: float = 1e-6) -> bool:
    """Whether a is b times a number."""
    a, b = a.reshape(-1), b.reshape(-1)
    return same(a, b * (a @ b / (b @ b).clamp_min(1e-300)), tolerance)


def _round(value: float) -> float:
    return 1.0 if abs(value - 1) < 1e-4 else value


def _shown(contributions: Sequence[Contribution]) -> str:
    return " + ".join(each.path if each.factor == 1 else f"{each.factor:.4g} · {each.path}" for each in contributions)
