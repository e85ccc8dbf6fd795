"""(c) Does anything one can measure about a layer before training rank layers as their gains do, trained alone or by BuPO?"""

from __future__ import annotations

from pathlib import Path

from benchmarks.study import a_contribution, b_bupo_layers, kept
from benchmarks.study.figures import INTERVALS, forest
from benchmarks.study.findings import Result, claim
from benchmarks.study.settings import Size, gradients_chain
from benchmarks.study.steps import Chain

import layerlens as ll

TITLE = "Does anything one can measure about a layer rank layers as C(k) or BuPO's gain does?"
GAINS = {"C(k)": a_contribution, "BuPO's gain": b_bupo_layers}
"""What layers are ranked by, and the question that measures it."""
LEVEL = 0.05


def chains(size: Size) -> list[Chain]:
    gains = [chain for question in GAINS.values() for chain in question.chains(size)]
    return [*gains, *(gradients_chain(size, model) for model in size.models)]


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
    last = kept.kept(out, f"{model}/grpo-0")["last"]
    found["drift under GRPO"] = {layer: last[f"drift/layer_{layer}"] for layer in run.layers}
    gradients = kept.kept(out, f"{model}/gradients.json")
    for name in ("cosine, norm none", "cosine, norm final", "share of the gradient"):
        label = f"gradient's {name}" if "cosine" in name else "share of GRPO's squared gradient"
        found[label] = dict(zip(run.layers, gradients[name], strict=True))
    found["depth"] = {layer: float(layer) for layer in run.layers}
    return found


def method(size: Size) -> str:
    return f"""Spearman's ρ of each quantity, measured before training (drift: after GRPO with seed 0), with the layers' gains. A claim here
is decided by both intervals, which keep to these layers, and by chance: p is the share of all orders of the layers in which |ρ| is as large
as it is, and must be under {LEVEL:g}. Quantities that rise or fall with depth are nearly one quantity: compare the row of depth itself."""


def result(out: Path, size: Size) -> Result:
    values = {model: quantities(out, model) for model in size.models}
    panels: dict[str, dict[str, Result]] = {}
    claims = []
    for gain, question in GAINS.items():
        for model in size.models:
            contribution = question.contributions(out, size, model)
            panel = panels[f"{model}, {gain}"] = {}
            for name, each in values[model].items():
                rho, low, high = contribution.rank_correlation(each)
                _, seeds_low, seeds_high = contribution.rank_correlation(each, over="seeds")
                found = panel[name] = {
                    "estimate": rho, "low": low, "high": high, "seeds_low": seeds_low, "seeds_high": seeds_high, "seeds": size.seeds,
                    "p": contribution.chance(each), "unit": "ρ",
                }  # fmt: skip
                claims.append(claim(f"{model}: {name} rises with {gain}", found))
    caption = f"Layers trained alone (C(k)), or by BuPO: {size.max_steps} steps. {INTERVALS}"
    decided = [each for each in claims if each["verdict"] != "undecided" and each["p"] < LEVEL]
    return {
        "claims": decided,
        "table": [{"quantity": name, **{title: panel[name] for title, panel in panels.items()}} for name in values[size.models[0]]],
        "figures": [forest(panels, "Spearman's ρ", caption, out / "figures" / "c.png")],
        "note": f"Not held: it falls. {len(decided)} of {len(claims)} correlations are decided; if no quantity had to do with gains, "
        f"chance would leave {LEVEL * len(claims):.0f} of them with so small a p.",
    }


def _by_layer(run: ll.Run, values: object) -> dict[int, float]:
    return dict(zip(run.layers, map(float, values.values), strict=True))  # type: ignore[attr-defined]
