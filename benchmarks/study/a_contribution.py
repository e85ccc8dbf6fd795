"""(a) What does each layer contribute when it is trained alone?"""

from __future__ import annotations

from pathlib import Path

from benchmarks.study import findings
from benchmarks.study.findings import Result, claim
from benchmarks.study.settings import ALONE, Size, base_chain, grpo, training
from benchmarks.study.steps import Chain

import layerlens as ll
from layerlens.results.contribution import LayerContribution

TITLE = "What does each layer contribute when it is trained alone?"


def chains(size: Size) -> list[Chain]:
    found: list[Chain] = []
    for model in size.models:
        found += [base_chain(size, model), *grpo(size, model, size.seeds)]
    for seed in range(size.seeds):  # all layers with one seed first: a study that is stopped has seeds less, not layers
        for model in size.models:
            for layer in size.layers:
                options = f"--internal_layer none --train_layers {layer} --learning_rate {ALONE}"
                found.append(training(size, model, f"layer-{layer}", options, seed))
    return found


def contributions(out: Path, size: Size, model: str) -> LayerContribution:
    """C(k) of the layers that were trained alone."""
    return findings.contributions(out, model, size.seeds, {layer: f"layer-{layer}" for layer in size.layers})


def result(out: Path, size: Size) -> Result:
    claims, table, figures = [], [], []
    for model in size.models:
        found = contributions(out, size, model)
        table += [{"model": model, **row} for row in found.table.to_dict("records")]
        claims.append(claim(f"{model}: all layers together gain", {"estimate": found.full["gain"], **_ends(found.full)}))
        best = found.table.loc[found.table["gain"].idxmax()]
        ends = {
            "estimate": best["contribution"], "low": best["contribution_low"], "high": best["contribution_high"],
            "seeds_low": best["contribution_seeds_low"], "seeds_high": best["contribution_seeds_high"], "seeds": best["seeds"],
        }  # fmt: skip
        claims.append(
            claim(f"{model}: the best layer alone (layer {best['layers']}, chosen in hindsight) gains more than all", ends, "C(k)", 1.0)
        )
        run = ll.open_run(out / model / "run-final")
        figures.append(str(ll.plots.save(ll.plots.layer_contribution(found, run), out / "figures" / f"a-{model}.png").name))
    return {"claims": claims, "table": table, "figures": figures}


def _ends(row: object) -> Result:
    return {name: row[name] for name in ("low", "high", "seeds_low", "seeds_high", "seeds")}  # type: ignore[index]
