"""(f) Are features refined during the internal phase: does the trained layer become more like those above it than under GRPO?"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from benchmarks.study.findings import Result, claim, over_seeds
from benchmarks.study.settings import LAYER, Size, base_chain, bupo, grpo
from benchmarks.study.steps import Chain

import layerlens as ll
from layerlens.results import open_training

TITLE = "Does the trained layer become more like the layers above it than under GRPO?"
MODEL = "tiny-qwen3"


def chains(size: Size) -> list[Chain]:
    return [base_chain(size, MODEL), *grpo(size, MODEL, size.seeds), *bupo(size, MODEL, LAYER, size.internal, size.seeds)]


def method(size: Size) -> str:
    return f"""The mean cosine of layer {LAYER}'s state to those of the layers above it on watched problems, at the end of training less at
its start: BuPO ({size.internal} of {size.max_steps} rollouts at layer {LAYER}) against GRPO with the same seed."""


def result(out: Path, size: Size) -> Result:
    changes = {
        name: np.array([_change(out / MODEL / f"{name}-{seed}") for seed in range(size.seeds)])
        for name in ("grpo", f"bupo-{LAYER}-{size.internal}")
    }
    control, trained = changes.values()
    table = [{"method": name, "seed": seed, "change": value} for name, each in changes.items() for seed, value in enumerate(each)]
    text = f"mean cosine of layer {LAYER} to the layers above it rises more by the end of training than under GRPO"
    logs = [open_training(out / MODEL / f"{name}-0") for name in changes]
    figure = ll.plots.save(ll.plots.training_dynamics(logs, ["similarity/above", "kl/above"]), out / "figures" / "f.png")
    return {"claims": [claim(text, over_seeds(trained - control, 2.0, "cosine"))], "table": table, "figures": [figure.name]}


def _change(folder: Path) -> float:
    similarity = open_training(folder).monitor["similarity/above"]
    return float(similarity.iloc[-1] - similarity.iloc[0])
