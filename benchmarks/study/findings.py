"""What the questions share: opening what the steps left, differences with their intervals, and verdicts."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import cache
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
from benchmarks.study import kept

from layerlens.errors import LayerLensError
from layerlens.evaluate import Evaluation, avg_at_k
from layerlens.evaluate.scores import estimate_mean

Result = dict[str, Any]
"""Of a question: `claims` (list of `claim`), `table` (rows by column) and `figures` (file names). Of a number: `estimate`, the interval for
other problems (`low`, `high`), that for other seeds (`seeds_low`, `seeds_high`), or both, `unit`, and what it was found from."""


@cache  # the questions share most of them
def evaluation(out: Path, model: str, name: str) -> Evaluation:
    """The evaluation that a step left."""
    return kept.evaluation(kept.kept(out, f"{model}/evals/{name}"))


def evaluations(out: Path, model: str, name: str, seeds: int) -> list[Evaluation]:
    """Those of a training with each seed."""
    return [evaluation(out, model, f"{name}-{seed}") for seed in range(seeds)]


def difference(after: Sequence[Evaluation], before: Sequence[Evaluation]) -> Result:
    """Mean accuracy of `after` less that of `before`, paired by seed and problem, with the intervals over problems and over seeds."""
    return _with_intervals(_gains(after, before))


def difference_of_best(trained: Mapping[int, Sequence[Evaluation]], control: Sequence[Evaluation]) -> Result:
    """Of the best layer against a control, without the luck that makes the best of many look better than it is.

    Seeds and problems are halved, alternately. Each quarter of the pairs takes the layer that is best on the opposite quarter: other
    seeds, and other problems. `layers` are those taken.
    """
    gains = {layer: _gains(each, control) for layer, each in trained.items()}
    seed_half, problem_half = (np.arange(length) % 2 for length in next(iter(gains.values())).shape)
    found = np.empty((len(seed_half), len(problem_half)))
    taken = set()
    for a, b in product((0, 1), repeat=2):
        opposite, quarter = np.ix_(seed_half != a, problem_half != b), np.ix_(seed_half == a, problem_half == b)
        best = max(gains, key=lambda layer: gains[layer][opposite].mean())
        found[quarter] = gains[best][quarter]
        taken.add(best)
    return {**_with_intervals(found), "layers": sorted(taken)}


def _gains(after: Sequence[Evaluation], before: Sequence[Evaluation]) -> np.ndarray:
    """Seeds × problems. Raises LayerLensError if they answered different problems, as those kept from another study may have."""
    for a, b in zip(after, before, strict=True):
        if not a.same_problems(b):
            raise LayerLensError(f"{a.model} and {b.model} answered different problems: take both from one study")
    return np.array([avg_at_k(a.correct) - avg_at_k(b.correct) for a, b in zip(after, before, strict=True)])


def _with_intervals(gains: np.ndarray) -> Result:
    over_problems, over_seeds = (estimate_mean(gains.mean(axis), bounds=(-1.0, 1.0)) for axis in (0, 1))
    return {
        "estimate": over_problems.mean, "low": over_problems.low, "high": over_problems.high, "seeds_low": over_seeds.low,
        "seeds_high": over_seeds.high, "seeds": len(gains), "problems": gains.shape[1], "unit": "points",
    }  # fmt: skip


def over_seeds(values: np.ndarray, reach: float, unit: str) -> Result:
    """The mean of one number for each seed, which lies within ± `reach`, with its interval for other seeds."""
    found = estimate_mean(values, bounds=(-reach, reach))
    return {"estimate": found.mean, "seeds_low": found.low, "seeds_high": found.high, "seeds": len(values), "unit": unit}


def claim(text: str, found: Result, above: float = 0.0) -> Result:
    """A claim that a number is above `above`: held if its intervals are, not held if they are below, else undecided."""
    lows, highs = ([found[name] for prefix in ("", "seeds_") if (name := f"{prefix}{end}") in found] for end in ("low", "high"))
    verdict = "held" if min(lows) > above else "not held" if max(highs) < above else "undecided"
    if any(map(math.isnan, [*lows, *highs])):  # an interval that does not exist decides nothing
        verdict = "undecided"
    return {"claim": text, "verdict": verdict, **found}


def plain(value: Any) -> Any:
    """The value as JSON has it; NaN is None."""
    if isinstance(value, dict):
        return {str(key): plain(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [plain(each) for each in value]
    value = value.item() if hasattr(value, "item") else value
    return None if isinstance(value, float) and not math.isfinite(value) else value
