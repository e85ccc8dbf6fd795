"""(g) How do the entropy curves and phases form during pretraining, and (h) do the families differ by architecture or by data?"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from benchmarks.study.findings import Result
from benchmarks.study.settings import BOTH, Size
from benchmarks.study.steps import Chain, Step

import layerlens as ll

TITLE = "How do the entropy curves and phases form during pretraining?"


def chains(size: Size) -> list[Chain]:
    return [
        _chain(size, model, seed, steps) for model in BOTH for seed in range(size.pretraining_seeds) for steps in size.pretraining
    ]  # fmt: skip


def _chain(size: Size, model: str, seed: int, steps: int) -> Chain:
    where = f"pretraining/{seed}-{steps}"
    recipe = f"python -m recipes.tiny_models.train --model {model} --steps {steps} --seed {seed} --out {{out}}/{where} {size.device}"
    analysis = (
        f"layerlens analyze {{out}}/{where}/{model} arithmetic --limit {size.samples} --dtype float32 --max-new-tokens 256 --norm none "
        f"--out {{out}}/{where}/{model}-run {size.device}"
    )
    return [Step(f"{where}/{model}", tuple(recipe.split())), Step(f"{where}/{model}-run", tuple(analysis.split()))]


def curve(out: Path, model: str, seed: int, steps: int) -> tuple[np.ndarray, np.ndarray]:
    """Mean entropy of the stream, and mean FFN ΔS, by layer."""
    run = ll.open_run(out / f"pretraining/{seed}-{steps}" / f"{model}-run")
    changes = run.mean("entropy_change")["mean"].sel(module="ffn").values
    return run.mean("entropy")["mean"].sel(site="resid_post").values, changes


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
    runs = [ll.open_run(out / f"pretraining/0-{steps}" / f"{model}-run") for model in BOTH for steps in size.pretraining[-1:]]
    figure = ll.plots.save(ll.plots.entropy_curves(runs), out / "figures" / "g.png")
    return {"claims": [], "table": table, "figures": [figure.name]}
