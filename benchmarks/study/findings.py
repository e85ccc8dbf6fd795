"""What the questions share: opening what the steps left, differences with their intervals, and verdicts."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from layerlens.errors import LayerLensError
from layerlens.evaluate import Evaluation, avg_at_k, open_evaluation
from layerlens.evaluate.contribution import layer_contribution
from layerlens.evaluate.scores import estimate_mean
from layerlens.results.contribution import LayerContribution

Result = dict[str, Any]
"""`claims` (list of `claim`), `table` (rows by column) and, if there is one, `figure` (a file name)."""


def evaluation(out: Path, model: str, name: str) -> Evaluation:
    """The evaluation that a step left."""
    [folder] = [file.parent for file in (out / model / "evals" / name).glob("*/eval.json")] or [None]
    if folder is None:
        raise LayerLensError(f"{out}/{model}/evals/{name} holds no evaluation: run the question first")
    return open_evaluation(folder)


def evaluations(out: Path, model: str, name: str, seeds: int) -> list[Evaluation]:
    """Those of a training with each seed."""
    return [evaluation(out, model, f"{name}-{seed}") for seed in range(seeds)]


def contributions(out: Path, model: str, seeds: int, trained: Mapping[int, str]) -> LayerContribution:
    """The gain of each layer's trainings, whose names `trained` has, beside that of GRPO on all layers."""
    layers = {layer: evaluations(out, model, name, seeds) for layer, name in trained.items()}
    return layer_contribution({"base": evaluation(out, model, "base"), "all": evaluations(out, model, "grpo", seeds), **layers})


def difference(after: Sequence[Evaluation], before: Sequence[Evaluation]) -> Result:
    """Mean accuracy of `after` less that of `before`, paired by seed and problem, with the intervals over problems and over seeds."""
    gains = np.array([avg_at_k(a.correct) - avg_at_k(b.correct) for a, b in zip(after, before, strict=True)])
    over_problems, over_seeds = (estimate_mean(gains.mean(axis), bounds=(-1.0, 1.0)) for axis in (0, 1))
    return {
        "estimate": over_problems.mean, "low": over_problems.low, "high": over_problems.high, "seeds_low": over_seeds.low,
        "seeds_high": over_seeds.high, "seeds": len(gains), "problems": gains.shape[1],
    }  # fmt: skip


def claim(text: str, found: Result, unit: str = "points", above: float = 0.0) -> Result:
    """A claim that a number is above `above`: held if both intervals are, not held if both are below, else undecided."""
    lows, highs = ([found.get(f"{prefix}{end}", math.nan) for prefix in ("", "seeds_")] for end in ("low", "high"))
    verdict = "held" if min(lows) > above else "not held" if max(highs) < above else "undecided"
    if any(map(math.isnan, [*lows, *highs])):  # an interval that does not exist decides nothing
        verdict = "undecided"
    return {"claim": text, "verdict": verdict, "unit": unit, **found}


def plain(value: Any) -> Any:
    """The value as JSON has it; NaN is None."""
    if isinstance(value, dict):
        return {str(key): plain(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [plain(each) for each in value]
    value = value.item() if hasattr(value, "item") else value
    return None if isinstance(value, float) and not math.isfinite(value) else value
