"""(a) What does each layer contribute when it is trained alone?"""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from pathlib import Path
from typing import Any

from benchmarks.study import findings
from benchmarks.study.findings import Result, claim, difference, difference_of_best, evaluations
from benchmarks.study.settings import ALONE, Size, base_chains, fast_grpo, grpo, training
from benchmarks.study.steps import Chain

import layerlens as ll

TITLE = "What does each layer contribute when it is trained alone?"


def chains(size: Size) -> list[Chain]:
    found: list[Chain] = []
    for model in size.models:
        found += [*base_chains(size, model), *grpo(size, model, size.seeds), *fast_grpo(size, model, size.seeds)]
    for seed in range(size.seeds):  # all layers with one seed first: a study that is stopped has seeds less, not layers
        for model in size.models:
            for layer in size.layers:
                options = f"--internal_layer none --train_layers {layer} --learning_rate {ALONE}"
                found.append(training(size, model, f"layer-{layer}", options, seed))
    return found


def method(size: Size) -> str:
    return f"""Block k alone is trained (`--train_layers k`) at a learning rate of {ALONE:g}, √12 times that of all layers: Adam moves each
weight by about the rate in a step, so a block alone takes steps as long as those of all. C(k) is its gain in accuracy divided by that
of all layers; unless the interval of the gain of all, for other problems, lies above 0, C(k) has no denominator, a dash stands for it,
and the figure has gains in its place. As the rate may matter by itself, a second control trains all layers at {ALONE:g}. The claims of
the best layer are free of the luck that makes the best of many look good: each quarter of seeds × problems takes the layer that is best
on the other seeds and other problems. In the figure ρ is Spearman's between a curve and the gains, with its interval for other
problems; (c) says what chance would do."""


def result(out: Path, size: Size) -> Result:
    claims, table, figures = [], [], []
    for model in size.models:
        before = findings.evaluation(out, model, "base")
        base = [before] * size.seeds
        control, fast = (evaluations(out, model, name, size.seeds) for name in ("grpo", "grpo-fast"))
        alone = {layer: evaluations(out, model, f"layer-{layer}", size.seeds) for layer in size.layers}
        found = ll.layer_contribution({"base": before, "all": control, **alone})
        gains = {**{str(layer): difference(each, base) for layer, each in alone.items()}, "all": difference(control, base)}
        shares = {row["layers"]: _share(row) for row in found.table.to_dict("records")}
        table += [{"model": model, "layers": name, "gain [points]": gain, "C(k)": shares.get(name)} for name, gain in gains.items()]
        table.append({"model": model, "layers": f"all, rate {ALONE:g}", "gain [points]": difference(fast, base)})
        claims.append(claim(f"{model}: all layers together gain", gains["all"]))
        claims.append(claim(f"{model}: all layers at a learning rate of {ALONE:g} gain more than at their own", difference(fast, control)))
        for against, rate in ((control, "their own rate"), (fast, "the same rate")):
            best = difference_of_best(alone, against)
            layers = ", ".join(map(str, best["layers"]))
            claims.append(claim(f"{model}: the best layer alone (layer {layers}) gains more than all layers at {rate}", best))
        run = ll.open_run(out / model / "run-final")
        figures.append(str(ll.plots.save(ll.plots.layer_contribution(found, run), out / "figures" / f"a-{model}.png").name))
    return {"claims": claims, "table": table, "figures": figures}


def _share(row: Mapping[Hashable, Any]) -> Result:
    ends = {name: row[f"contribution_{name}"] for name in ("low", "high", "seeds_low", "seeds_high")}
    return {"estimate": row["contribution"], **ends, "unit": "C(k)"}
