"""(c) Does anything one can measure about a layer before training rank layers as their gains do?"""

from __future__ import annotations

import json
from pathlib import Path

from benchmarks.study import a_contribution
from benchmarks.study.figures import INTERVALS, forest
from benchmarks.study.findings import Result, claim
from benchmarks.study.settings import Size, gradients_chain
from benchmarks.study.steps import Chain

import layerlens as ll
from layerlens.results import open_training

TITLE = "Does anything one can measure about a layer rank layers as C(k) does?"


def chains(size: Size) -> list[Chain]:
    return [*a_contribution.chains(size), *(gradients_chain(size, model) for model in size.models)]


def quantities(out: Path, model: str) -> dict[str, dict[int, float]]:
    """By name, each layer's value before training (drift: after GRPO, seed 0)."""
    found: dict[str, dict[int, float]] = {}
    for norm in ("none", "final"):
        run = ll.open_run(out / model / f"run-{norm}")
        entropy = run.mean("entropy")["mean"].sel(site="resid_post")
        found[f"entropy, norm {norm}"] = _by_layer(run, entropy)
        found[f"FFN ΔS, norm {norm}"] = _by_layer(run, run.mean("entropy_change")["mean"].sel(module="ffn"))
        found[f"entropy drop, norm {norm}"] = _by_layer(run, -run.mean("entropy_change")["mean"].sel(module="layer"))
        for metric in ("js_to_final", "kl_to_final"):
            found[f"{metric}, norm {norm}"] = _by_layer(run, run.mean(metric)["mean"].sel(site="resid_post"))
        found["CKA with the last layer"] = _by_layer(run, run.mean("cka")["mean"].sel(layer_to=run.n_layers))
    run = ll.open_run(out / model / "run-final")
    settled = run.values("settling_depth").values
    found["tokens that settle at the layer"] = {layer: float((settled == layer).mean()) for layer in run.layers}
    monitor = open_training(out / model / "grpo-0").monitor
    found["drift under GRPO"] = {layer: float(monitor[f"drift/layer_{layer}"].iloc[-1]) for layer in run.layers}
    gradients = json.loads((out / model / "gradients.json").read_text())
    for name in ("cosine, norm none", "cosine, norm final", "share of the gradient"):
        label = f"gradient's {name}" if "cosine" in name else "share of GRPO's squared gradient"
        found[label] = dict(zip(run.layers, gradients[name], strict=True))
    found["depth"] = {layer: float(layer) for layer in run.layers}
    return found


def result(out: Path, size: Size) -> Result:
    claims, table = [], []
    panels: dict[str, dict[str, Result]] = {model: {} for model in size.models}
    for model in size.models:
        contribution = a_contribution.contributions(out, size, model)
        for name, values in quantities(out, model).items():
            rho, low, high = contribution.rank_correlation(values)
            _, seeds_low, seeds_high = contribution.rank_correlation(values, over="seeds")
            ends = {"estimate": rho, "low": low, "high": high, "seeds_low": seeds_low, "seeds_high": seeds_high, "seeds": size.seeds}
            panels[model][name] = ends
            table.append({"model": model, "quantity": name, **ends})
            claims.append(claim(f"{model}: {name} rises with C(k)", ends, "ρ"))
    caption = f"Layers trained alone, {size.max_steps} steps of GRPO. {INTERVALS}"
    figure = forest(panels, "Spearman's ρ with C(k)", caption, out / "figures" / "c.png")
    return {"claims": claims, "table": table, "figures": [figure]}


def _by_layer(run: ll.Run, values: object) -> dict[int, float]:
    return dict(zip(run.layers, map(float, values.values), strict=True))  # type: ignore[attr-defined]
