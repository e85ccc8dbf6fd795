"""(f) Are features refined during the internal phase: does the trained layer become more like those above it than under GRPO?"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from benchmarks.study import kept
from benchmarks.study.figures import SEEDS, forest
from benchmarks.study.findings import Result, claim, over_seeds
from benchmarks.study.settings import LAYER, Size, base_chains, bupo, grpo
from benchmarks.study.steps import Chain

TITLE = "Does the trained layer become more like the layers above it than under GRPO?"
MODEL = "tiny-qwen3"
WATCHED = {"similarity/above": ("cosine to the layers above", "cosine", 2.0), "kl/above": ("KL to the layers above", "nats", 20.0)}
"""Column of a training's monitor -> what it is called, its unit, and the most that it can change by."""


def chains(size: Size) -> list[Chain]:
    return [*base_chains(size, MODEL), *grpo(size, MODEL, size.seeds), *bupo(size, MODEL, LAYER, size.internal, size.seeds)]


def method(size: Size) -> str:
    return f"""What changes at layer {LAYER} on watched problems from the start of training to its end: the mean cosine of its state to
those of the layers above it, and the mean KL divergence of its policy from theirs. BuPO ({size.internal} of {size.max_steps} rollouts at
layer {LAYER}) against GRPO with the same seed."""


def result(out: Path, size: Size) -> Result:
    trained = f"bupo-{LAYER}-{size.internal}"
    panels: dict[str, dict[str, Result]] = {}
    for column, (title, unit, reach) in WATCHED.items():
        grpo, bupo = (np.array([_change(out, f"{name}-{seed}", column) for seed in range(size.seeds)]) for name in ("grpo", trained))
        rows = {"GRPO": grpo, "BuPO": bupo, "BuPO less GRPO": bupo - grpo}
        panels[f"change of the {title}"] = {name: over_seeds(each, reach, unit) for name, each in rows.items()}
    cosines, divergences = panels.values()
    start = kept.kept(out, f"{MODEL}/grpo-0")["first"]
    caption = f"{MODEL}, layer {LAYER}: change in {size.max_steps} steps of training; KL of policies read with norm none. {SEEDS}"
    return {
        "claims": [
            claim(f"the mean cosine of layer {LAYER} to the layers above it rises more than under GRPO", cosines["BuPO less GRPO"]),
            claim(f"the mean KL of layer {LAYER} to the layers above it rises more than under GRPO", divergences["BuPO less GRPO"]),
        ],
        "table": [{"method": name, **{title: found[name] for title, found in panels.items()}} for name in cosines],
        "figures": [forest(panels, [unit for _, unit, _ in WATCHED.values()], caption, out / "figures" / "f.png")],
        "note": f"Before training the cosine is {start['similarity/above']:.3f} and the KL {start['kl/above']:.2f} nats (seed 0). Watched "
        f"are {size.watched} training problems, which the seed draws, the same for both methods.",
    }


def _change(out: Path, name: str, column: str) -> float:
    found = kept.kept(out, f"{MODEL}/{name}")
    return float(found["last"][column] - found["first"][column])
