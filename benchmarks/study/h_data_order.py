"""(h) Do the two families' curves differ by architecture or by data?

A seed fixes the data order, and both families see the same order with the same seed: trained on the other's order is trained with
the other's seed. So the distance of the curves of two families at one seed is compared with that of one family at two seeds.
"""

from __future__ import annotations

from itertools import combinations
from pathlib import Path

import numpy as np
from benchmarks.study import g_pretraining
from benchmarks.study.figures import lines
from benchmarks.study.findings import Result, claim, over_seeds
from benchmarks.study.settings import BOTH, Size
from benchmarks.study.steps import Chain

TITLE = "Do the two families' curves differ by architecture or by data?"


def chains(size: Size) -> list[Chain]:
    return g_pretraining.chains(size)


def method(size: Size) -> str:
    return f"""A seed fixes the order of the data, the same for both families, and the weights at the start. The distance of two curves is
their root mean square difference over layers: that of the two families at one seed, less that of one family at two seeds;
{size.pretraining_seeds} seeds. If families differ by the order of their data alone, it is not above 0. What one family differs by at two
seeds is the order of the data and the start together, which were not varied apart, and its pairs share curves: with so few seeds the
interval is a rough one."""


def result(out: Path, size: Size) -> Result:
    last, seeds = size.pretraining[-1], range(size.pretraining_seeds)
    curves = {(model, seed): g_pretraining.after(out, model, last, len(seeds))[0][seed] for model in BOTH for seed in seeds}
    between = [_distance(curves[BOTH[0], seed], curves[BOTH[1], seed]) for seed in seeds]
    within = [
        np.mean([_distance(curves[model, seed], curves[model, other]) for model in BOTH for other in seeds if other != seed])
        for seed in seeds
    ]
    found = over_seeds(np.array(between) - np.array(within), 100.0, "nats")
    table = [
        {"pair": f"{a[0]} seed {a[1]}, {b[0]} seed {b[1]}", "distance": _distance(curves[a], curves[b])} for a, b in combinations(curves, 2)
    ]
    caption = (
        f"Residual stream, norm none, {size.samples} problems, after {last} steps; a line for each seed: order of the data, and start."
    )
    panels = {"both families": {model: [curves[model, seed] for seed in seeds] for model in BOTH}}
    figure = lines(panels, "mean entropy [nats]", caption, out / "figures" / "h.png")
    return {
        "claims": [claim("families differ more at one data order than a family does at two", found)],
        "table": table,
        "figures": [figure],
    }


def _distance(a: np.ndarray, b: np.ndarray) -> float:
    """Root mean square difference over layers, nats."""
    return float(np.sqrt(np.mean((a - b) ** 2)))
