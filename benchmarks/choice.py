"""How often the boundary rule names the right layer, and how the order in which rules are asked changes what is recommended.

    python -m benchmarks.choice > benchmarks/choice.json

"shapes": data sets are drawn from curves of known ΔS (tests/selection/test_shapes.py), with independent normal noise between samples
and layers. "before" takes whatever phases the cut finds; "now" asks in addition that the mean ΔS of exploration exceeds its margin of
error, of the mean and of every resample alike. "named": any layer is named; "right": the true one is.

"orders": data sets are 8 of the 32 problems that each bundled model answers, and what is counted is the layer that each order of the
rules recommends, 0 for none. No order is right or wrong here: which layer trains best is not known.
"""

from __future__ import annotations

import json
import sys
import time
from collections import Counter
from dataclasses import replace
from typing import Any

import numpy as np
from tests.selection.test_shapes import LLAMA, NOTHING, OPEN, QWEN, RISE_AND_RISE, WEAK, curves_of

import layerlens as ll
from layerlens.metrics import PhaseRule
from layerlens.models import generate_responses
from layerlens.selection.curves import Curves, read_curves
from layerlens.selection.rules import Answer, answers, find_phases_of
from layerlens.storage.bundled import MODELS, bundled_prompts
from layerlens.types import READOUT_METRICS, RULES, Norm, Rule

DATA_SETS = 400
PROBLEMS, DRAWN, DRAWS = 32, 8, 100
RESAMPLES = 200

SHAPES: dict[str, tuple[np.ndarray, int, float]] = {
    "Qwen3-4B as described": (QWEN, 6, 0.15),
    "Qwen3-4B as described, noisy": (QWEN, 6, 0.5),
    "Llama, weakly positive": (WEAK, 27, 0.15),
    "Llama, noisy": (LLAMA, 27, 0.5),
    "open to the end": (OPEN, 27, 0.3),
    "+ - +": (RISE_AND_RISE, 29, 0.3),
    "nothing": (NOTHING, 0, 0.15),
}
"""Mean ΔS by layer, the layer that should be named (0: none), and the standard deviation of a sample."""

ORDERS: dict[str, tuple[tuple[Rule, ...], bool]] = {
    "boundary first, open or not": (("boundary", "skill", "settled", "settling_depth", "agreement", "entropy_drop"), False),
    "skill first": (("skill", "settled", "settling_depth", "agreement", "entropy_drop", "boundary"), False),
    "boundary, else skill, open ones last": (("boundary", "skill", "settled", "settling_depth", "agreement", "entropy_drop"), True),
    "as now: boundary, else settled, open ones last": (RULES, True),
}
"""In which order rules are asked, and whether those with an open answer come after all others."""


def shape(change: np.ndarray, truth: int, sd: float, samples: int) -> dict[str, dict[str, float]]:
    found: dict[str, list[int]] = {"before": [], "now": []}
    for seed in range(DATA_SETS):
        drawn = change + sd * np.random.default_rng(seed).standard_normal((samples, len(change)))
        curves = curves_of(drawn, seed)
        phases = find_phases_of(curves, PhaseRule())
        assert phases is not None
        for name, margin in (("before", -np.inf), ("now", phases.margin)):
            answer = answers(curves, replace(phases, margin=margin), 0.5, None)["boundary"]
            found[name].append(answer.layer if answer.determined else 0)
    return {
        name: {"named": share(layer > 0 for layer in layers), "right": share(layer == truth for layer in layers)}
        for name, layers in found.items()
    }


def share(flags: Any) -> float:
    return round(float(np.mean(list(flags))), 3)


def recommended(said: dict[Rule, Answer], curves: Curves, order: tuple[Rule, ...], open_last: bool) -> int:
    """The layer that an order recommends; 0 for none."""
    asked = [rule for rule in order if rule in said]
    for rule in sorted(asked, key=lambda rule: open_last and bool(said[rule].open)):
        layer = said[rule].layer
        if said[rule].determined and 0 < layer < curves.n_layers and (curves.usable is None or curves.usable[layer - 1]):
            return layer
    return 0


def orders(run: ll.Run) -> dict[str, dict[str, float]]:
    """The share of data sets in which each order recommends which layer, the most frequent first."""
    counts: dict[str, Counter[int]] = {name: Counter() for name in ORDERS}
    owner = run.data["sample"].values
    for seed in range(DRAWS):
        kept = np.random.default_rng(seed).choice(PROBLEMS, DRAWN, replace=False)
        # samples without a response row have no part in a mean
        response = ("token", run.data["in_response"].values * np.isin(owner, kept))
        part = replace(run, data=run.data.assign_coords(in_response=response))
        curves = read_curves(part, over="sample", rows="response", resamples=RESAMPLES, seed=seed)
        said = answers(curves, find_phases_of(curves, PhaseRule()), 0.5, curves.usable)
        for name, (order, open_last) in ORDERS.items():
            counts[name][recommended(said, curves, order, open_last)] += 1
    return {name: {str(layer): count / DRAWS for layer, count in found.most_common()} for name, found in counts.items()}


def bundled(name: str) -> dict[str, Any]:
    model = ll.load(name, dtype="float32")
    prompts = ll.read_prompts(bundled_prompts(), model, limit=PROBLEMS)
    samples = generate_responses(model, prompts, ll.Generation(256, seed=0), range(PROBLEMS))
    norms: tuple[Norm, ...] = ("none", "final", "matched")
    sites = ("resid_pre", "ffn_in", "ffn_out", "resid_post")
    return {norm: orders(ll.analyze(model, samples, norm=norm, sites=sites, metrics=READOUT_METRICS, rows="response")) for norm in norms}


def main() -> None:
    start = time.perf_counter()
    shapes = {name: {str(samples): shape(*case, samples) for samples in (8, 30)} for name, case in SHAPES.items()}
    result = {"data_sets": DATA_SETS, "seed": 0, "shapes": shapes}
    result |= {"problems": PROBLEMS, "drawn": DRAWN, "draws": DRAWS, "orders": {name: bundled(name) for name in MODELS}}
    json.dump(result, sys.stdout, indent=1)
    print()
    print(f"{time.perf_counter() - start:.0f} s", file=sys.stderr)


if __name__ == "__main__":
    main()
