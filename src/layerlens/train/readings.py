"""What one look into a model says: numbers by name, each mean with its bootstrap interval over the probe problems."""

from __future__ import annotations

from collections.abc import Callable
from itertools import combinations
from typing import Any

import numpy as np
from jaxtyping import Float, Int
from torch import Tensor

from layerlens.metrics.bootstrap import bootstrap_means, interval
from layerlens.models import LensModel
from layerlens.results import Run
from layerlens.results.training_log import HIGH, LOW

PATH_POINTS = 32
"""Points along a response at which entropy paths of different lengths are compared."""

OUTPUTS = {"layer": "resid_post", "attn": "attn_out", "ffn": "ffn_out"}
"""Where a layer's and its modules' outputs are read."""

Row = dict[str, int | float | None]
Array = np.ndarray


def reading(name: str, mean: Any, draws: Any) -> Row:
    """A mean under its name, and the ends of the 95% interval of its resamples beside it; None where there is none."""
    low, high = interval(np.asarray(draws, np.float64))
    return {key: None if np.isnan(value) else float(value) for key, value in ((name, mean), (name + LOW, low), (name + HIGH, high))}


def inside(run: Run, trained: int) -> Row:
    """Entropy and ΔS of every layer and module, and how the trained layer relates to those above it."""
    row: Row = {}
    entropy, change = run.bootstrap("entropy"), run.bootstrap("entropy_change")
    for layer in run.layers:
        for module, site in OUTPUTS.items():
            row |= reading(f"entropy/{module}_{layer}", *(part.sel(layer=layer, site=site) for part in entropy))
            row |= reading(f"entropy_change/{module}_{layer}", *(part.sel(layer=layer, module=module) for part in change))
    above = [layer for layer in run.layers if layer > trained]
    if above:
        alike = [part.sel(layer=trained, layer_to=above, drop=True).rename(layer_to="layer") for part in run.bootstrap("similarity")]
        apart = [part.sel(site="resid_post", layer=above) for part in run.bootstrap("kl_from_layer")]
        for name, parts in (("similarity", alike), ("kl", apart)):
            for layer in above:
                row |= reading(f"{name}/to_{layer}", *(part.sel(layer=layer) for part in parts))
            row |= reading(f"{name}/above", *(part.mean("layer") for part in parts))
    return row


def own_policy(run: Run) -> Row:
    """Entropy and perplexity of the full policy, from a run of the last layer under the final norm."""
    return {
        name: value
        for shown, metric in (("policy_entropy", "entropy"), ("perplexity", "perplexity"))
        for name, value in reading(shown, *(part.isel(layer=0, site=0) for part in run.bootstrap(metric))).items()
    }


def per_problem(name: str, groups: Int[Array, "problems repeats"], values: Float[Array, " answers"]) -> Row:
    """The mean over all answers; `groups` holds each problem's answers, by number."""
    return reading(name, *bootstrap_means(values[groups].sum(1), np.full(len(groups), float(groups.shape[1]))))


def per_pair(name: str, groups: Int[Array, "problems repeats"], agree: Callable[[int, int], float]) -> Row:
    """The mean of `agree` over all pairs of answers to one problem; pairs without a value (NaN) are left out."""
    pairs = np.array([[agree(int(a), int(b)) for a, b in combinations(group, 2)] for group in groups])
    known = ~np.isnan(pairs)
    return reading(name, *bootstrap_means(np.where(known, pairs, 0.0).sum(1), known.sum(1).astype(np.float64)))


def entropy_path(entropy: Float[Array, " tokens"]) -> Float[Array, " points"]:
    """A response's entropies, read at `PATH_POINTS` evenly spaced places, so that responses of any length compare."""
    path: Array = np.interp(np.linspace(0, len(entropy) - 1, PATH_POINTS), np.arange(len(entropy)), entropy)
    return path


def correlation(a: Array, b: Array) -> float:
    """Pearson's; NaN where one of them does not vary."""
    return float(np.corrcoef(a, b)[0, 1]) if a.std() > 0 and b.std() > 0 else float("nan")


def drift(lens: LensModel, start: dict[str, Tensor]) -> Row:
    """How far each layer's weights have moved since the start: the norm of the change over the norm at the start."""
    moved: dict[str, list[float]] = {}
    for name, weight in weights_by_part(lens).items():
        sums = moved.setdefault(name.split("|")[0], [0.0, 0.0])
        sums[0] += float((weight.detach().cpu().double() - start[name].double()).square().sum())
        sums[1] += float(start[name].double().square().sum())
    return {f"drift/{part}": (change / before) ** 0.5 for part, (change, before) in moved.items() if before > 0}


def weights_by_part(lens: LensModel) -> dict[str, Tensor]:
    """Every weight under `<layer_n, embedding, ...>|<its name>`; in place of LoRA's factors, what they add to a weight."""
    weights: dict[str, Tensor] = {}
    for number, block in enumerate(lens.parts.blocks, 1):
        weights |= {f"layer_{number}|{name}": weight for name, weight in block.named_parameters() if ".lora_" not in name}
        for name, module in block.named_modules():
            if hasattr(module, "get_delta_weight"):
                weights |= {f"layer_{number}|{name}.{adapter}": module.get_delta_weight(adapter) for adapter in module.active_adapters}
    weights["embedding|weight"] = lens.parts.model.get_input_embeddings().weight
    if not lens.parts.tied:
        weights["unembedding|weight"] = lens.parts.unembedding
    return weights
