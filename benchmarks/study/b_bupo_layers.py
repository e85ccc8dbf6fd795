"""(b) What does BuPO gain at each layer, and how far is each rule's choice from the best layer in hindsight?"""

from __future__ import annotations

from pathlib import Path

from benchmarks.study import findings
from benchmarks.study.figures import INTERVALS, by_layer
from benchmarks.study.findings import Result, claim, difference, evaluations
from benchmarks.study.settings import Size, base_chain, bupo, grpo
from benchmarks.study.steps import Chain

import layerlens as ll
from layerlens.evaluate import Evaluation
from layerlens.results.contribution import LayerContribution
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
    return {layer: difference(_trained(out, size, model, layer), control) for layer in layers(size)}


def contributions(out: Path, size: Size, model: str) -> LayerContribution:
    """BuPO's gains at its layers over the model before training, with their draws."""
    return findings.contributions(out, model, size.seeds, {layer: _name(size, layer) for layer in layers(size)})


def result(out: Path, size: Size) -> Result:
    claims, table, panels, marks = [], [], {}, {}
    for model in size.models:
        found = panels[model] = gains(out, size, model)
        best = max(found, key=lambda layer: found[layer]["estimate"])
        table += [{"model": model, "layer": layer, "rule": "", **each} for layer, each in found.items()]
        claims.append(claim(f"{model}: BuPO at its best layer ({best}, chosen in hindsight) gains more than GRPO", found[best]))
        chosen: dict[int, list[str]] = {}
        for norm in ("none", "final"):
            run = ll.open_run(out / model / f"run-{norm}")
            for rule in RULES:
                layer = _chosen(run, rule)
                row: Result = {"model": model, "rule": f"{rule}, norm {norm}", "layer": layer}
                if layer is not None:
                    chosen.setdefault(layer, []).append(row["rule"])
                    near = min(found, key=lambda trained: abs(trained - layer))
                    regret = difference(_trained(out, size, model, best), _trained(out, size, model, near))
                    row |= {"nearest trained": near, **{f"regret {end}": regret[end] for end in ("estimate", "low", "high")}}
                table.append(row)
        marks[model] = {layer: "\n".join(rules) for layer, rules in chosen.items()}
    shows = f"BuPO less GRPO at equal rollouts, {size.internal} of {size.max_steps} internal, norm none."
    caption = f"{shows} {INTERVALS} Words: rules that choose the layer."
    figure = by_layer(panels, marks, "gain over GRPO [points]", caption, out / "figures" / "b.png", scale=100)
    return {"claims": claims, "table": table, "figures": [figure]}


def _trained(out: Path, size: Size, model: str, layer: int) -> list[Evaluation]:
    return evaluations(out, model, _name(size, layer), size.seeds)


def _name(size: Size, layer: int) -> str:
    return f"bupo-{layer}-{size.internal}"


def _chosen(run: ll.Run, rule: str) -> int | None:
    try:
        return ll.select_layer(run, rule).layer  # type: ignore[arg-type]
    except ll.LayerLensError:  # a rule for the other norm
        return None
