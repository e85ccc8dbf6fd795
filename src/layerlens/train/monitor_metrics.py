"""What a monitor's snapshot measures, by name: means over the probe problems, each kept problem by problem."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from itertools import combinations

import numpy as np
import xarray as xr
from jaxtyping import Float, Int
from torch import Tensor

from layerlens.models import LensModel
from layerlens.results import Run
from layerlens.results.rows import sums_by_sample
from layerlens.train.probe_means import ProbeMean, Row
from layerlens.types import METRIC_BOUNDS, UNBOUNDED, Segment

PATH_POINTS = 32
"""Points along a response at which entropy paths of different lengths are compared."""

OUTPUTS = {"layer": "resid_post", "attn": "attn_out", "ffn": "ffn_out"}
"""Module -> the site of its output."""

ANSWERED: tuple[Segment, ...] = ("thinking", "answer")
"""The segments of a response."""

Array = np.ndarray


def layer_means(run: Run, watched: int) -> dict[str, ProbeMean]:
    """Entropy and ΔS of every layer and module, in nats; similarity and KL of the layer `watched` to each layer above it."""
    means: dict[str, ProbeMean] = {}
    entropy, change = by_problem(run, "entropy"), by_problem(run, "entropy_change")
    for layer in run.layers:
        for module, site in OUTPUTS.items():
            means[f"entropy/{module}_{layer}"] = probe_mean("entropy", entropy.sel(layer=layer, site=site))
            means[f"entropy_change/{module}_{layer}"] = probe_mean("entropy_change", change.sel(layer=layer, module=module))
    above = [layer for layer in run.layers if layer > watched]
    if above:
        similarity = by_problem(run, "similarity").sel(layer=watched, layer_to=above, drop=True).rename(layer_to="layer")
        divergence = by_problem(run, "kl_from_layer").sel(site="resid_post", layer=above)
        for name, metric, parts in (("similarity", "similarity", similarity), ("kl", "kl_from_layer", divergence)):
            means |= {f"{name}/to_{layer}": probe_mean(metric, parts.sel(layer=layer)) for layer in above}
            means[f"{name}/above"] = probe_mean(metric, parts.mean("layer"))
    return means


def final_policy_means(run: Run) -> dict[str, ProbeMean]:
    """Of the final policy: its entropy and log perplexity, nats, the JS of each layer to it, bits, and the layer at which tokens settle.

    `run` is of `resid_post` at all layers under the final norm. If the probe's answers think, entropy and settling depth are there of each
    segment too.
    """
    means = _of_final_policy(run, {"policy_entropy": "entropy", "log_perplexity": "log_perplexity"}, None)
    js = by_problem(run, "js_to_final").isel(site=0)
    means |= {f"js_to_final/layer_{layer}": probe_mean("js_to_final", js.sel(layer=layer)) for layer in run.layers}
    segments = [segment for segment in ANSWERED if (run.data["segment"].values == segment).any()]
    for segment in (None, *(segments if len(segments) > 1 else ())):
        means |= {_named("settling_depth", segment): probe_mean("settling_depth", by_problem(run, "settling_depth", segment))}
        means |= _of_final_policy(run, {_named("policy_entropy", segment): "entropy"}, segment) if segment else {}
    return means


def _of_final_policy(run: Run, names: Mapping[str, str], segment: Segment | None) -> dict[str, ProbeMean]:
    last = run.layers[-1]
    return {name: probe_mean(metric, by_problem(run, metric, segment).sel(layer=last).isel(site=0)) for name, metric in names.items()}


def _named(name: str, segment: Segment | None) -> str:
    return name if segment is None else f"{name}/{segment}"


def by_problem(run: Run, metric: str, segment: Segment | None = None) -> xr.Dataset:
    """Each sample's mean of a metric over its response rows, or those of a segment, as `sums`, with `counts` 1, or 0 if it has none."""
    values = run.values(metric)
    dims = ("sample", *values.dims[1:])
    coords = {name: values.coords[name] for name in values.dims[1:] if name in values.coords}
    parts = sums_by_sample(run.data, values, run.row_mask(segment=segment), "sample")
    return xr.Dataset({name: (dims, part) for name, part in zip(("sums", "counts"), parts, strict=True)}, coords)


def probe_mean(metric: str, parts: xr.Dataset) -> ProbeMean:
    """One number per problem of `by_problem`, with the range of its metric."""
    return ProbeMean(parts["sums"].values, parts["counts"].values, METRIC_BOUNDS.get(metric, UNBOUNDED))


def mean_per_problem(groups: Int[Array, "problems repeats"], values: Float[Array, " answers"]) -> ProbeMean:
    """The mean of `values` over all answers. `groups` holds, for each problem, the indices of its answers in `values`."""
    return ProbeMean(values[groups].sum(1), np.full(len(groups), float(groups.shape[1])), (0.0, np.inf))


def mean_per_pair(
    groups: Int[Array, "problems repeats"], agreement: Callable[[int, int], float], bounds: tuple[float, float] = (-1.0, 1.0)
) -> ProbeMean:
    """The mean of `agreement` over all pairs of answers to one problem; pairs whose agreement is NaN are left out."""
    pairs = np.array([[agreement(int(a), int(b)) for a, b in combinations(group, 2)] for group in groups])
    known = ~np.isnan(pairs)
    return ProbeMean(np.where(known, pairs, 0.0).sum(1), known.sum(1).astype(np.float64), bounds)


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
