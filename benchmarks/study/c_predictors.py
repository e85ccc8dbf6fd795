"""(c) Does anything one can measure about a layer rank layers as their gains do, trained alone or by BuPO?"""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pandas as pd
from benchmarks.study import kept
from benchmarks.study.figures import INTERVALS, forest
from benchmarks.study.findings import Result, claim
from benchmarks.study.settings import RESULTS, Size, base_chains, gradients_chain, grpo
from benchmarks.study.steps import Chain

import layerlens as ll
from layerlens.errors import LayerLensError
from layerlens.metrics.intervals import LEVEL, RESAMPLES
from layerlens.results.contribution import LayerContribution
from layerlens.results.settling import settling_shares

TITLE = "Does anything one can measure about a layer rank layers as what they gain alone, or by BuPO?"
GAINS = {"gain alone": ("a", "layers", "gain [points]"), "BuPO's gain": ("b", "layer", "gain over GRPO [points]")}
"""What layers are ranked by -> the question that has measured it, and the columns of its table."""
CHANCE = 0.05
QUANTILE = 1.96
"""Of the normal distribution, at the ends of a 95% interval."""


def chains(size: Size) -> list[Chain]:
    found: list[Chain] = []
    for model in size.models:
        found += [*base_chains(size, model), *grpo(size, model, 1), gradients_chain(size, model)]
    return found


def published(out: Path, size: Size, gain: str, model: str) -> LayerContribution | None:
    """The gains that a question has found, with draws from their intervals, each layer's by itself; None if it has not been run.

    Raises LayerLensError if it was run with other numbers of seeds.
    """
    letter, key, column = GAINS[gain]
    files = [file for file in (out / "results" / f"{letter}.json", RESULTS / f"{letter}.json") if file.is_file()]
    found = json.loads(files[0].read_text(encoding="utf-8")) if files else {"table": []}
    rows = [row for row in found["table"] if row["model"] == model and str(row.get(key)).isdigit() and row.get(column)]
    if not rows:
        return None
    gains = pd.DataFrame([row[column] for row in rows])
    if set(gains["seeds"]) != {size.seeds}:
        raise LayerLensError(
            f"{files[0]} is of {gains['seeds'].iloc[0]} seeds, not {size.seeds}: run question ({letter}) at this size first"
        )
    noise = np.random.default_rng(0).standard_normal((RESAMPLES, len(rows)))
    draws = {
        over: gains["estimate"].to_numpy() + noise * (gains[f"{prefix}high"] - gains[f"{prefix}low"]).to_numpy() / (2 * QUANTILE)
        for over, prefix in (("problems", ""), ("seeds", "seeds_"))
    }
    table = gains.rename(columns={"estimate": "gain"}).assign(layer=[int(row[key]) for row in rows])
    counts = {name: int(gains[name].iloc[0]) for name in ("problems", "seeds")}
    return LayerContribution(table, counts, float("nan"), model, "held-out", LEVEL, draws)


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
    settled = settling_shares(run, np.ones(run.n_samples, bool))["mean"].values[0]  # one group: of all samples
    found["tokens that settle at the layer"] = dict(zip(run.layers, map(float, settled), strict=True))
    last = kept.kept(out, f"{model}/grpo-0")["last"]
    found["drift under GRPO"] = {layer: last[f"drift/layer_{layer}"] for layer in run.layers}
    gradients = kept.kept(out, f"{model}/gradients.json")
    for name in ("cosine, norm none", "cosine, norm final", "share of the gradient"):
        label = f"gradient's {name}" if "cosine" in name else "share of GRPO's squared gradient"
        found[label] = dict(zip(run.layers, gradients[name], strict=True))
    found["depth"] = {layer: float(layer) for layer in run.layers}
    return found


def method(size: Size) -> str:
    return f"""Spearman's ρ of each quantity, measured before training (drift: after GRPO with seed 0), with the layers' gains as (a) and
(b) found them. Its intervals come from those of the gains, each layer drawn by itself: as layers share problems and the model before
training, which moves all gains alike, these are wider than they need be. A claim is decided by both intervals, which keep to these layers,
and by chance: p is the share of all orders of the layers in which |ρ| is as large as it is, and must be under {CHANCE:g} after it is
multiplied by the number of quantities (Bonferroni), as the claims have it: of 17 quantities only |ρ| above about 0.78 can be with twelve
layers, and only |ρ| = 1 with BuPO's six. Quantities that rise or fall with depth are nearly one quantity: compare the row of depth
itself."""


def result(out: Path, size: Size) -> Result:
    values = {model: quantities(out, model) for model in size.models}
    panels: dict[str, dict[str, Result]] = {}
    for gain in GAINS:
        for model in size.models:
            if (contribution := published(out, size, gain, model)) is None:
                continue
            panel = panels[f"{model}, {gain}"] = {}
            for name, each in values[model].items():
                rho, low, high = contribution.rank_correlation(each)
                _, seeds_low, seeds_high = contribution.rank_correlation(each, over="seeds")
                panel[name] = {
                    "estimate": rho, "low": low, "high": high, "seeds_low": seeds_low, "seeds_high": seeds_high, "seeds": size.seeds,
                    "p": contribution.chance(each), "unit": "ρ",
                }  # fmt: skip
    if not panels:
        raise LayerLensError("(c) ranks layers by the gains of (a) and (b): run one of these first")
    claims = [each for title, panel in panels.items() for each in claims_of(title, panel)]
    found = [each for panel in panels.values() for each in panel.values()]
    decided, small = sum(each["verdict"] != "undecided" for each in claims), sum(each["p"] < CHANCE for each in found)
    missing = [gain for gain in GAINS if not any(title.endswith(gain) for title in panels)]
    caption = f"What layers gain alone, or by BuPO: {size.max_steps} steps. {INTERVALS}"
    return {
        "claims": claims,
        "table": [{"quantity": name, **{title: panel[name] for title, panel in panels.items()}} for name in values[size.models[0]]],
        "figures": [forest(panels, "Spearman's ρ", caption, out / "figures" / "c.png")],
        "note": f"Of {len(found)} correlations {f'{decided} are' if decided else 'none is'} decided. In the table, where p is not "
        f"multiplied, {small} have p under {CHANCE:g}; if no quantity had to do with gains, chance would leave {CHANCE * len(found):.0f}."
        + "".join(f" {gain} is not there yet: ({GAINS[gain][0]}) has not been run." for gain in missing),
    }


def claims_of(title: str, panel: dict[str, Result]) -> list[Result]:
    """The correlations of a panel that are decided, or the strongest if none is; p is multiplied by how many there are."""
    model, gain = title.split(", ")
    tried = {name: {**each, "p": min(1.0, each["p"] * len(panel))} for name, each in panel.items() if not math.isnan(each["p"])}
    gain = gain if gain == "BuPO's gain" else f"the {gain}"
    claims = {name: claim(f"{model}: {name} rises with {gain}", each) for name, each in tried.items()}
    decided = [each for each in claims.values() if each["verdict"] != "undecided" and each["p"] < CHANCE]
    if decided or not claims:
        return decided
    name = min(tried, key=lambda name: (panel[name]["p"], -abs(panel[name]["estimate"])))
    return [{**claims[name], "claim": f"{model}: {name}, the strongest of {len(panel)}, rises with {gain}", "verdict": "undecided"}]


def _by_layer(run: ll.Run, values: object) -> dict[int, float]:
    return dict(zip(run.layers, map(float, values.values), strict=True))  # type: ignore[attr-defined]
