"""The numbers of a monitor's snapshot, by name: each mean with its bootstrap interval over the probe problems."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import combinations
from typing import Any

import numpy as np
import xarray as xr
from jaxtyping import Float, Int
from torch import Tensor

from layerlens.metrics.intervals import bootstrap_means, interval
from layerlens.models import LensModel
from layerlens.results import Run
from layerlens.results.training_log import HIGH, LOW
from layerlens.types import METRIC_BOUNDS, UNBOUNDED

PATH_POINTS = 32
"""Points along a response at which entropy paths of different lengths are compared."""

OUTPUTS = {"layer": "resid_post", "attn": "attn_out", "ffn": "ffn_out"}
"""Module -> the site of its output."""

Row = dict[str, int | float | None]
"""Numbers of a snapshot by name; None for a mean over nothing, and for the interval of a single problem."""
Array = np.ndarray


def with_interval(name: str, mean: Any, draws: Any, n: int, bounds: tuple[float, float] = UNBOUNDED) -> Row:
    """A mean under its name, and the ends of the 95% interval of its resamples (of `n` problems) beside it; None in place of NaN."""
    low, high = interval(np.asarray(draws, np.float64), np.asarray(mean, np.float64), n, bounds=bounds)
    return {key: _known(value) for key, value in ((name, mean), (name + LOW, low), (name + HIGH, high))}


def _known(value: Any) -> float | None:
    return None if np.isnan(value) else float(value)


def _of_run(name: str, metric: str, parts: Sequence[xr.DataArray]) -> Row:
    """`with_interval` of a mean of a run and its resamples."""
    mean, draws = parts
    return with_interval(name, mean, draws, mean.attrs["problems"], METRIC_BOUNDS.get(metric, UNBOUNDED))


def layer_metrics(run: Run, watched: int) -> Row:
    """Entropy and ΔS of every layer and module, in nats; similarity and KL of the layer `watched` to each layer above it."""
    row: Row = {}
    entropy, change = run.bootstrap("entropy"), run.bootstrap("entropy_change")
    for layer in run.layers:
        for module, site in OUTPUTS.items():
            row |= _of_run(f"entropy/{module}_{layer}", "entropy", [part.sel(layer=layer, site=site) for part in entropy])
            parts = [part.sel(layer=layer, module=module) for part in change]
            row |= _of_run(f"entropy_change/{module}_{layer}", "entropy_change", parts)
    above = [layer for layer in run.layers if layer > watched]
    if above:
        similarity = [part.sel(layer=watched, layer_to=above, drop=True).rename(layer_to="layer") for part in run.bootstrap("similarity")]
        divergence = [part.sel(site="resid_post", layer=above) for part in run.bootstrap("kl_from_layer")]
        for name, metric, parts in (("similarity", "similarity", similarity), ("kl", "kl_from_layer", divergence)):
            for layer in above:
                row |= _of_run(f"{name}/to_{layer}", metric, [part.sel(layer=layer) for part in parts])
            row |= _of_run(f"{name}/above", metric, [part.mean("layer", keep_attrs=True) for part in parts])
    return row


def final_policy_metrics(run: Run) -> Row:
    """Entropy (nats) and perplexity of the final policy, from a run of the last layer's `resid_post` under the final norm."""
    row: Row = {}
    for shown, metric in (("policy_entropy", "entropy"), ("perplexity", "perplexity")):
        mean = run.mean(metric).isel(layer=0, site=0)
        row |= {key: _known(mean[part]) for key, part in ((shown, "mean"), (shown + LOW, "low"), (shown + HIGH, "high"))}
    return row


def mean_per_problem(name: str, groups: Int[Array, "problems repeats"], values: Float[Array, " answers"]) -> Row:
    """The mean of `values` over all answers. `groups` holds, for each problem, the indices of its answers in `values`."""
    return with_interval(name, *bootstrap_means(values[groups].sum(1), np.full(len(groups), float(groups.shape[1]))), len(groups))


def mean_per_pair(name: str, groups: Int[Array, "problems repeats"], agreement: Callable[[int, int], float]) -> Row:
    """The mean of `agreement` over all pairs of answers to one problem; pairs whose agreement is NaN are left out."""
    pairs = np.array([[agreement(int(a), int(b)) for a, b in combinations(group, 2)] for group in groups])
    known = ~np.isnan(pairs)
    draws = bootstrap_means(np.where(known, pairs, 0.0).sum(1), known.sum(1).astype(np.float64))
    return with_interval(name, *draws, int(known.any(1).sum()), (-1.0, 1.0))


def entropy_path(entropy: Float[Array, " tokens"]) -> Float[Array, " points"]:
    """A response's entropies at `PATH_POINTS` evenly spaced places, so that responses of different lengths can be compared."""
    path: Array = np.interp(np.linspace(0, len(entropy) - 1, PATH_POINTS), np.arange(len(entropy)), entropy)
    return path


def correlation(a: Array, b: Array) -> float:
    """Pearson's correlation coefficient; NaN if one of the arrays does not vary."""
    return float(np.corrcoef(a, b)[0, 1]) if a.std() > 0 and b.std() > 0 else float("nan")


def drift(lens: LensModel, start: dict[str, Tensor]) -> Row:
    """How far each layer's weights have moved since the start: ‖W - W_start‖ / ‖W_start‖, over all weights of the layer."""
    moved: dict[str, list[float]] = {}
    for name, weight in weights_by_part(lens).items():
        sums = moved.setdefault(name.split("|")[0], [0.0, 0.0])
        sums[0] += float((weight.detach().cpu().double() - start[name].double()).square().sum())
        sums[1] += float(start[name].double().square().sum())
    return {f"drift/{part}": (change / before) ** 0.5 for part, (change, before) in moved.items() if before > 0}


def weights_by_part(lens: LensModel) -> dict[str, Tensor]:
    """Every weight under "<part>|<its name>", where a part is layer_1...layer_L, embedding or unembedding.

    In place of LoRA's two factors stands their product: what an adapter adds to a weight.
    """
    weights: dict[str, Tensor] = {}
    for number, block in enumerate(lens.parts.blocks, 1):
        weights |= {f"layer_{number}|{name}": weight for name, weight in block.named_parameters() if ".lora_" not in name}
        for name, module in block.named_modules():
            if hasattr(module, "get_delta_weight"):
                weights |= {f"layer_{number}|{name}.{adapter}": module.get_delta_weight(adapter) for adapter in module.active_adapters}
    weights["embedding|weight"] = lens.parts.model.get_input_embeddings().weight
    if not lens.parts.tied:
        weights["unembedding|weight"] = lens.parts.unembedding_weight
    return weights
