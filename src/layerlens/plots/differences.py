"""What changed between two runs of one model: layer × site over the data set, or layer × token of one text."""

from __future__ import annotations

from typing import Unpack

import numpy as np
import xarray as xr
from matplotlib.axes import Axes

from layerlens.errors import SelectionError
from layerlens.metrics.bootstrap import LEVEL, interval
from layerlens.plots.axis import head, number_layers, set_title
from layerlens.plots.canvas import axes_size, new_figure, settle
from layerlens.plots.caption import describe, finish
from layerlens.plots.data import Limits, MeanOptions, require_metric, second_dim
from layerlens.plots.labels import metric_label, plain
from layerlens.plots.mesh import color_bar, draw_mesh, hatched, normalize
from layerlens.plots.style import MODULE_NAMES, Scale, styled
from layerlens.plots.tokens import LABEL_SIZE, ROW_INCHES, TOKEN_INCHES, label_tokens, mark_response, token_cells
from layerlens.results import Run

SCALE = Scale("RdBu_r", centred=True, tail=0.01)
UNSURE = "unsure"
"""The gid of the dots in cells whose interval holds zero."""


@styled
def difference_heatmap(
    before: Run,
    after: Run,
    metric: str = "entropy",
    sample: int | str | None = None,
    *,
    site: str | None = None,
    limits: Limits = None,
    ax: Axes | None = None,
    **mean: Unpack[MeanOptions],
) -> Axes:
    """What `after` has more of than `before`: layer × site of the mean, or layer × token of one sample.

    In a mean, dots mark cells whose bootstrap interval holds zero. Samples are resampled in pairs where both runs read the
    same tokens, each run by itself otherwise; the caption says which.

    Args:
        before, after: runs of one architecture under one norm, such as two looks of a training monitor.
        metric: `entropy`, `entropy_change`, `logp_next`, `kl_to_final`, `agrees`, ...
        sample: a sample's number or id that both runs hold, on the same tokens; None for the mean.
        site: where it is read, of a sample (`resid_post` by default, or module `ffn`) or as the only column.
        limits: ends of the colour scale, to compare figures; symmetric around zero by default.
        ax: axes to draw into; a figure of fitting size by default.
        mean: as in `Run.mean`.

    Raises:
        SelectionError: the runs differ in layers, norm or, for one sample, tokens, or one lacks the metric, site or sample.
    """
    for run in (before, after):
        require_metric(run, metric)
    _require_alike(before, after)
    if metric == "perplexity":
        raise SelectionError("a difference of perplexities has no scale of its own: draw metric='logp_next', its logarithm")
    if sample is None:
        return _of_means(before, after, metric, site, limits, ax, mean)
    if mean:
        raise SelectionError(f"{', '.join(mean)} belongs to a difference of means; leave out sample=")
    return _of_tokens(before, after, metric, sample, site, limits, ax)


def _require_alike(before: Run, after: Run) -> None:
    if before.norm != after.norm:
        raise SelectionError(f"norm is {before.norm!r} before and {after.norm!r} after: their policies do not compare, analyse both alike")
    if (before.n_layers, before.layers) != (after.n_layers, after.layers):
        shown = [f"{len(run.layers)} of {run.n_layers}" for run in (before, after)]
        raise SelectionError(f"the runs hold other layers, {shown[0]} before and {shown[1]} after: analyse both with the same layers")


def _of_means(before: Run, after: Run, metric: str, site: str | None, limits: Limits, ax: Axes | None, mean: MeanOptions) -> Axes:
    level = mean.get("level", LEVEL)
    drawn = {name: value for name, value in mean.items() if name != "level"}
    paired = _same_tokens(before, after)
    seed = mean.get("seed", 0)
    old, old_draws = before.bootstrap(metric, **{**drawn, "seed": seed})  # type: ignore[arg-type]
    new, new_draws = after.bootstrap(metric, **{**drawn, "seed": seed if paired else seed + 1})  # type: ignore[arg-type]
    dim = second_dim(old)
    names = _shared(before, after, old, new, dim, site)
    chosen = {dim: names}
    values = (new.sel(chosen) - old.sel(chosen)).transpose("layer", dim).values
    draws = (new_draws.sel(chosen) - old_draws.sel(chosen)).transpose("resample", "layer", dim).values
    low, high = interval(draws, level)

    width, height = 1.9 + 0.5 * max(len(names), 5), float(np.clip(1.7 + 0.15 * values.shape[0], 3, 9.5))
    target = ax or new_figure(width, height).subplots()
    mesh = draw_mesh(target, values, normalize(SCALE, values, limits), SCALE)
    target.set_xticks(range(len(names)), [MODULE_NAMES.get(name, name) for name in names], rotation=45, ha="right", rotation_mode="anchor")
    target.set_xlabel(f"{dim}, in the order the data flows" if dim == "site" else dim)
    rows, columns = np.nonzero((low <= 0) & (high >= 0) & np.isfinite(values))
    if len(rows):
        target.plot(columns, rows, linestyle="", marker=".", markersize=2.5, color="0.2", gid=UNSURE)
    head(target, _title(before, after), [])
    settle(target)
    color_bar(target, mesh, values, f"difference of {metric_label(metric)}")
    settle(target)
    number_layers(target.yaxis, before.layers, axes_size(target)[1], apart=0.12, rows=True)
    means = [old.attrs, new.attrs]
    single = min(attrs["samples"] for attrs in means) < 2
    kind = "paired samples" if paired else "samples of each run"
    dots = "1 sample: no interval" if single else f"dots: the {100 * level:g}% bootstrap interval over {kind} holds 0"
    shows = "\u00a0· ".join(part for part in ("after − before", hatched(values), dots) if part)
    return finish(target, ax, describe([before, after], means, shows=shows, interval=False))


def _of_tokens(before: Run, after: Run, metric: str, sample: int | str, site: str | None, limits: Limits, ax: Axes | None) -> Axes:
    parts = [Run(run.sample(sample), run.manifest) for run in (before, after)]
    name = plain(str(parts[0].data["sample_id"].values[0]))
    ids = [part.data["token_id"].values for part in parts]
    if (
        len(ids[0]) != len(ids[1])
        or (ids[0] != ids[1]).any()
        or (parts[0].data["position"].values != parts[1].data["position"].values).any()
    ):
        same = next((i for i, (a, b) in enumerate(zip(*ids, strict=False)) if a != b), min(map(len, ids)))
        raise SelectionError(
            f"sample {name} has other tokens before ({len(ids[0])}) and after ({len(ids[1])}), from row {same} on: a difference needs "
            "one text, so analyse both models on the same responses, or leave out sample= to compare means"
        )
    place, old = token_cells(parts[0], metric, site)
    cells = token_cells(parts[1], metric, site)[1] - old
    rows = parts[0].data
    n = cells.shape[1]
    size = np.clip(1.7 + TOKEN_INCHES * n, 4.5, 13), np.clip(2.1 + ROW_INCHES * cells.shape[0], 3, 8.5)
    target = ax or new_figure(float(size[0]), float(size[1])).subplots()
    mesh = draw_mesh(target, cells, normalize(SCALE, cells, limits, tail=True), SCALE)
    color_bar(target, mesh, cells, f"difference of {metric_label(metric, mean=False)}")
    settle(target)
    number_layers(target.yaxis, before.layers, 0.85 * axes_size(target)[1], apart=0.12, rows=True)
    label_tokens(target, rows)
    marked = mark_response(target, rows["in_response"].values.astype(bool))
    set_title(target, f"{_title(before, after)} · sample {name} · {place}", pad=14.0 if marked else 5.0)
    shows = [f"after − before, one sample ({name}, {n} tokens) at {place}: no mean, no interval", hatched(cells)]
    finish(target, ax, describe([before, after], shows="\u00a0· ".join(part for part in shows if part)))
    target.tick_params(axis="x", labelsize=LABEL_SIZE)
    return target


def _shared(before: Run, after: Run, old: xr.DataArray, new: xr.DataArray, dim: str, site: str | None) -> list[str]:
    """The sites (or modules) of both runs, or the one that is asked for."""
    names = [str(name) for name in old[dim].values if name in new[dim].values]
    if site is not None and site not in names:
        raise SelectionError(f"no {dim} {site!r} in both runs; they share {', '.join(names) or 'none'}")
    if not names:
        raise SelectionError(f"the runs share no {dim}: {', '.join(before.sites)} before, {', '.join(after.sites)} after")
    return names if site is None else [site]


def _same_tokens(before: Run, after: Run) -> bool:
    """Whether both runs read the same tokens of the same samples."""
    return all(
        np.array_equal(before.data[name].values, after.data[name].values) for name in ("sample", "position", "token_id", "in_response")
    )


def _title(before: Run, after: Run) -> str:
    if before.model != after.model:
        return f"{after.model} − {before.model}"
    if before.path is not None and after.path is not None and before.path.name != after.path.name:
        return f"{before.model} · {after.path.name} − {before.path.name}"
    return f"{before.model} · after − before"
