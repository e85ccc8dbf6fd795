"""(b) What does BuPO gain at each layer, and how far is each rule's choice from the best layer in hindsight?"""

from __future__ import annotations

from pathlib import Path

from benchmarks.study.findings import Result, claim, difference, evaluations
from benchmarks.study.settings import Size, base_chain, bupo, grpo
from benchmarks.study.steps import Chain

import layerlens as ll
from layerlens.types import RULES

TITLE = "What does BuPO gain at each layer, and what does each rule of choice lose against hindsight?"


def layers(size: Size) -> list[int]:
    """Every second layer, or those of a smaller study."""
    return [layer for layer in size.layers if layer % 2 == 0 or len(size.layers) < 12]


def chains(size: Size) -> list[Chain]:
    found: list[Chain] = []
    for model in size.models:
        found += [base_chain(size, model), *grpo(size, model, size.seeds)]
        for layer in layers(size):
            found += bupo(size, model, layer, size.internal, size.seeds)
    return found


def gains(out: Path, size: Size, model: str) -> dict[int, Result]:
    """By layer, the accuracy of BuPO less that of GRPO with the same seed."""
    control = evaluations(out, model, "grpo", size.seeds)
    return {layer: difference(evaluations(out, model, f"bupo-{layer}-{size.internal}", size.seeds), control) for layer in layers(size)}


def result(out: Path, size: Size) -> Result:
    claims, table = [], []
    for model in size.models:
        found = gains(out, size, model)
        best = max(found, key=lambda layer: found[layer]["estimate"])
        table += [{"model": model, "layer": layer, "rule": "", **each} for layer, each in found.items()]
        claims.append(claim(f"{model}: BuPO at its best layer ({best}, chosen in hindsight) gains more than GRPO", found[best]))
        for norm in ("none", "final"):
            run = ll.open_run(out / model / f"run-{norm}")
            for rule in RULES:
                chosen = _chosen(run, rule)
                near = min(found, key=lambda layer: abs(layer - chosen)) if chosen else None
                regret = None if near is None else found[best]["estimate"] - found[near]["estimate"]
                table.append({"model": model, "rule": f"{rule}, norm {norm}", "layer": chosen, "nearest trained": near, "regret": regret})
    return {"claims": claims, "table": table, "figures": []}


def _chosen(run: ll.Run, rule: str) -> int | None:
    try:
        return ll.select_layer(run, rule).layer  # type: ignore[arg-type]
    except ll.LayerLensError:  # a rule for the other norm
        return None
