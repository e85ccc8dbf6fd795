"""(g) How do the entropy curves and phases form during pretraining?"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from benchmarks.study import kept
from benchmarks.study.figures import lines
from benchmarks.study.findings import Result
from benchmarks.study.settings import BOTH, Size
from benchmarks.study.steps import Chain, Step

TITLE = "How do the entropy curves and phases form during pretraining?"


def chains(size: Size) -> list[Chain]:
    return [_chain(size, model, seed) for model in BOTH for seed in range(size.pretraining_seeds)]


def _chain(size: Size, model: str, seed: int) -> Chain:
    """A pretraining, and the analyses of the model after each number of steps."""
    where = f"pretraining/{seed}"
    snapshots = " ".join(f"--snapshot {steps}" for steps in size.pretraining)
    recipe = (
        f"python -m recipes.tiny_models.train --model {model} --steps {size.pretraining[-1]} {snapshots} --seed {seed} "
        f"--no-evaluate --out {{out}}/{where}"
    )
    analyses = {
        f"{where}/{model}-{steps}": f"layerlens analyze {{out}}/{where}/{model}/step-{steps} arithmetic --limit {size.samples} "
        f"--dtype float32 --max-new-tokens 256 --norm none --out {{out}}/{where}/{model}-{steps}"
        for steps in size.pretraining
    }
    return [
        Step(f"{where}/{model}", tuple(recipe.split())),
        *(Step(name, tuple(words.split()), keep=kept.curves) for name, words in analyses.items()),
    ]


def curve(out: Path, model: str, seed: int, steps: int) -> tuple[np.ndarray, np.ndarray]:
    """Mean entropy of the stream, and mean FFN ΔS, by layer."""
    found = kept.kept(out, f"pretraining/{seed}/{model}-{steps}")
    return np.array(found["entropy"]), np.array(found["ffn"])


def method(size: Size) -> str:
    return f"""Each family is pretrained with {size.pretraining_seeds} seeds (`recipes/tiny_models`), which fix weights and the order of
the data, and analysed on {size.samples} problems after each number of steps."""


def result(out: Path, size: Size) -> Result:
    table = []
    for model in BOTH:
        for steps in size.pretraining:
            entropies, changes = (
                np.array(each) for each in zip(*(curve(out, model, seed, steps) for seed in range(size.pretraining_seeds)), strict=True)
            )
            table.append({
                "model": model, "steps": steps, "seeds": size.pretraining_seeds,
                "entropy by layer": entropies.mean(0).round(3).tolist(), "spread over seeds": float(entropies.std(0, ddof=1).mean()),
                "layers with FFN ΔS above 0 in all seeds": [int(layer) for layer in np.flatnonzero((changes > 0).all(0)) + 1],
            })  # fmt: skip
    seeds = range(size.pretraining_seeds)
    panels = {
        model: {f"{steps} steps": [curve(out, model, seed, steps)[0] for seed in seeds] for steps in size.pretraining} for model in BOTH
    }
    caption = f"Residual stream, norm none, {size.samples} problems; a line for each of {size.pretraining_seeds} seeds of pretraining."
    figure = lines(panels, "mean entropy [nats]", caption, out / "figures" / "g.png")
    return {"claims": [], "table": table, "figures": [figure]}
