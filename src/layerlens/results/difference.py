"""What changed between two runs of one model: after minus before, with a bootstrap interval over paired samples if they pair."""

from __future__ import annotations

from typing import Any

import numpy as np
import xarray as xr

from layerlens.errors import SelectionError
from layerlens.metrics.difference import difference_of_means
from layerlens.metrics.intervals import LEVEL, RESAMPLES
from layerlens.results.run import Run
from layerlens.types import METRIC_BOUNDS, UNBOUNDED, Rows, Segment, Weighting


def difference(
    before: Run,
    after: Run,
    metric: str = "entropy",
    *,
    site: str | None = None,
    over: Weighting = "sample",
    rows: Rows = "response",
    segment: Segment | None = None,
    drop_first: int = 0,
    level: float = LEVEL,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> xr.Dataset:
    """The mean of a metric in `after` minus its mean in `before`, by layer and site, with its bootstrap interval over samples.

    If both runs read the same tokens of the same samples, they are resampled in pairs: each resample draws the same samples of
    both, which narrows the interval. Otherwise each run is resampled by itself, `after` with `seed + 1`.

    Args:
        before, after: runs with the same norm and layers, such as two snapshots of a training monitor.
        metric: as in `Run.mean`, without `perplexity`; in that metric's unit.
        site: the only site (of `entropy_change` and `stream_cosine`: module) to compare; all that both runs hold by default.
        over, rows, segment, drop_first, resamples, seed: as in `Run.bootstrap`.
        level: of the interval, between 0 and 1.

    Returns:
        A Dataset of `mean`, `low` and `high`, each layer × site (or × module), float64. `low` and `high` are NaN if one of the
        runs has fewer than two samples to average. Its attrs: `long_name`, `units`, `over`, `rows`, `segment`, `drop_first`,
        `level`, `paired` (1 or 0), and `samples_before` and `samples_after`, the samples that each mean rests on.

    Raises:
        SelectionError: the runs differ in norm or layers, one lacks the metric, or they share no site (or not the one asked for).
    """
    require_comparable(before, after, metric)
    paired = same_tokens(before, after)
    options: dict[str, Any] = {"over": over, "rows": rows, "segment": segment, "drop_first": drop_first, "resamples": resamples}
    old, old_draws = before.bootstrap(metric, seed=seed, **options)
    new, new_draws = after.bootstrap(metric, seed=seed if paired else seed + 1, **options)
    if old.ndim != 2:
        raise SelectionError(f"{metric!r} is not one value per layer and site, so it has no difference by layer and site")
    names = {str(old.dims[1]): _shared(before, after, old, new, site)}
    old, new, old_draws, new_draws = (part.sel(names) for part in (old, new, old_draws, new_draws))
    n = min(old.attrs["problems"], new.attrs["problems"])
    bounds = METRIC_BOUNDS.get(metric, UNBOUNDED)
    mean, low, high = difference_of_means(old.values, new.values, old_draws.values, new_draws.values, n, level, bounds)
    attrs = {
        "long_name": f"difference of {old.attrs['long_name']}",
        **{name: old.attrs[name] for name in ("units", "over", "rows", "segment", "drop_first", "position_0")},
        "level": level,
        "paired": int(paired),
        "problems": n,
        "samples_before": old.attrs["samples"],
        "samples_after": new.attrs["samples"],
    }
    parts = {"mean": mean, "low": low, "high": high}
    return xr.Dataset({name: (old.dims, values) for name, values in parts.items()}, old.coords, attrs)


def sample_difference(before: Run, after: Run, sample: int | str, metric: str = "entropy") -> xr.DataArray:
    """A metric in `after` minus in `before` at every token of one sample, in the metric's unit.

    Args:
        before, after: runs with the same norm and layers, both of this sample and the same tokens of it.
        sample: the sample's number or id.
        metric: a variable of the runs, or `entropy_change`.

    Returns:
        token × layer × site (or × module), float64, at the sites that both runs hold.

    Raises:
        SelectionError: the runs differ in norm, layers or tokens, or one lacks the metric or the sample.
    """
    require_comparable(before, after, metric)
    before, after = (Run(run.sample(sample), run.manifest) for run in (before, after))
    if not _equal(before, after, ("token_id", "position")):
        ids = [run.data["token_id"].values for run in (before, after)]
        same = next((i for i, (a, b) in enumerate(zip(*ids, strict=False)) if a != b), min(map(len, ids)))
        raise SelectionError(
            f"sample {before.data['sample_id'].values[0]} has other tokens before ({len(ids[0])}) and after ({len(ids[1])}), from row "
            f"{same} on: a difference needs one text, so analyse both models on the same responses, or leave out sample= to compare means"
        )
    return after.values(metric).astype(np.float64) - before.values(metric).astype(np.float64)


def require_comparable(before: Run, after: Run, metric: str) -> None:
    """Raises SelectionError if the runs differ in norm, lens, temperature or layers, or the metric is one that is not subtracted."""
    if metric == "perplexity":
        raise SelectionError("a difference of perplexities has no scale of its own: take metric='logp_next', its negative logarithm")
    if before.norm != after.norm:
        raise SelectionError(f"norm is {before.norm!r} before and {after.norm!r} after: their policies do not compare, analyse both alike")
    for name, values in (
        ("lens", [run.lens for run in (before, after)]),
        ("temperature", [run.manifest.config.temperature for run in (before, after)]),
        ("kl_from_layer", [run.manifest.config.kl_from_layer if metric == "kl_from_layer" else None for run in (before, after)]),
    ):
        if values[0] != values[1]:
            raise SelectionError(f"{name} is {values[0]} before and {values[1]} after: the numbers do not compare, analyse both alike")
    if (before.n_layers, before.layers) != (after.n_layers, after.layers):
        shown = [f"{len(run.layers)} of {run.n_layers}" for run in (before, after)]
        raise SelectionError(f"the runs hold other layers, {shown[0]} before and {shown[1]} after: analyse both with the same layers")


def require_same_tokens(one: Run, other: Run) -> None:
    """Raises SelectionError unless two runs read the same layers of the same weights, at one temperature, on the same tokens."""
    for name, values in (
        ("weights", [run.manifest.model.fingerprint for run in (one, other)]),
        ("temperature", [run.manifest.config.temperature for run in (one, other)]),
        ("layers", [run.layers for run in (one, other)]),
    ):
        if values[0] != values[1]:
            raise SelectionError(f"the runs differ in {name}, {values[0]} and {values[1]}: analyse one model twice, with the same settings")
    if not same_tokens(one, other):
        raise SelectionError("the runs read other tokens: analyse the same texts twice, or sample responses with the same seed")


def same_tokens(before: Run, after: Run) -> bool:
    """Whether both runs read the same tokens of the same samples."""
    return np.array_equal(before.data["sample_index"].values, after.data["sample_index"].values) and before.row_digests == after.row_digests


def _equal(before: Run, after: Run, coords: tuple[str, ...]) -> bool:
    return all(np.array_equal(before.data[name].values, after.data[name].values) for name in coords)


def _shared(before: Run, after: Run, old: xr.DataArray, new: xr.DataArray, site: str | None) -> list[object]:
    """The sites (modules, layers) of both means, or the one that is asked for."""
    dim = str(old.dims[1])
    names = [name for name in old[dim].values if name in new[dim].values]
    if site is not None and site not in names:
        raise SelectionError(f"no {dim} {site!r} in both runs; they share {', '.join(map(str, names)) or 'none'}")
    if not names:
        raise SelectionError(f"the runs share no {dim}: {', '.join(before.sites)} before, {', '.join(after.sites)} after")
    return names if site is None else [site]
