"""Heat maps of a metric: one sample's tokens layer by layer, or the whole run's sites layer by layer."""

from __future__ import annotations

from typing import Any, Unpack

import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import QuadMesh
from matplotlib.colors import ListedColormap
from matplotlib.patches import Patch

from layerlens.errors import SelectionError
from layerlens.plots.kit.axes import set_title
from layerlens.plots.kit.caption import NO_INTERVAL, describe_runs
from layerlens.plots.kit.cells import hatched_text, write_values
from layerlens.plots.kit.figure import axes_size
from layerlens.plots.kit.heat_map import heat_map, label_sites
from layerlens.plots.kit.labels import metric_label, plain
from layerlens.plots.kit.layer_axis import number_axis
from layerlens.plots.kit.run_data import MeanOptions, column_dim, drawn_metric, mean_at, mean_without_interval, require_metric
from layerlens.plots.kit.scale import SCALES, Limits, Scale
from layerlens.plots.kit.style import styled
from layerlens.plots.kit.tokens import cells_at, token_heat_map
from layerlens.results import Run

ROW_INCHES = 0.15
AGREEMENT = ListedColormap(["#E3E3E3", "#0072B2"], name="agreement")


@styled
def entropy_heatmap(
    run: Run,
    sample: int | str | None = None,
    site: str | None = None,
    metric: str = "entropy",
    *,
    tokens: slice | None = None,
    limits: Limits = None,
    annotate: bool | None = None,
    ax: Axes | None = None,
    **mean: Unpack[MeanOptions],
) -> Axes:
    """Layer × token of one sample, or layer × site of the whole run.

    Args:
        run: what to draw.
        sample: a sample's number or id; None for the mean over the run, at every site.
        site: where hidden vectors are read; for `entropy_change` and `stream_cosine` a module. By default `resid_post` (or
            `ffn`) of a sample, and all of them for the whole run.
        metric: `entropy`, `logp_next`, `kl_to_final`, `agrees`, `entropy_change`, ... or for the whole run `perplexity` (its logarithm).
        tokens: which of the sample's rows to draw, as a list is sliced; all by default. Labels are thinned, and numbered by
            position, if they would overlap.
        limits: ends of the colour scale, to compare figures; the data's by default.
        annotate: whether the whole run's means stand as numbers in the cells; by default if the numbers fit.
        ax: axes to draw into; a figure of fitting size by default.
        mean: the keyword arguments `over`, `rows`, `segment` and `drop_first` of `Run.mean`.

    Raises:
        SelectionError: the run lacks the metric, site or sample, or the token window is empty.
    """
    if sample is None:
        if tokens is not None:
            raise SelectionError("tokens= belongs to one sample's heat map; add sample=, a number or an id")
        return _by_site(run, site, metric, limits, annotate, ax, mean)
    if mean or annotate is not None:
        raise SelectionError(f"{', '.join(mean) or 'annotate'} belongs to the whole run's heat map; leave out sample=")
    return _by_token(run, sample, site, metric, tokens, limits, ax)


def _by_site(run: Run, site: str | None, metric: str, limits: Limits, annotate: bool | None, ax: Axes | None, options: MeanOptions) -> Axes:
    metric = drawn_metric(metric)
    require_metric(metric)
    mean = mean_without_interval(run, metric, options)
    dim = column_dim(mean)
    names = [str(name) for name in mean[dim].values] if site is None else [site]
    values = np.stack([mean_at(mean, name, run)["mean"].values for name in names], axis=-1)
    scale = SCALES[metric]

    def prepare(ax: Axes) -> None:
        label_sites(ax, names, dim)
        set_title(ax, run.model)

    def number(ax: Axes, cells: QuadMesh) -> None:
        width, height = axes_size(ax)
        number_axis(ax.yaxis, run.layers, height, apart=0.12, rows=True)
        fits = height / len(run.layers) > 0.1 and width / len(names) > 0.3
        if fits if annotate is None else annotate:
            write_values(ax, cells, values, digits=2 if scale.centred or scale.high == 1.0 else 1)

    return heat_map(
        values,
        scale,
        metric_label(metric),
        ax=ax,
        size=(1.9 + 0.5 * max(len(names), 3), float(np.clip(1.6 + ROW_INCHES * len(run.layers), 3, 9.5))),
        limits=limits,
        before_layout=prepare,
        after_layout=number,
        caption=describe_runs(run, mean.attrs, shows=[hatched_text(values)], interval=NO_INTERVAL),
    )


def _by_token(run: Run, sample: int | str, site: str | None, metric: str, tokens: slice | None, limits: Limits, ax: Axes | None) -> Axes:
    if metric == "perplexity":
        raise SelectionError("perplexity is of a whole run; draw metric='logp_next' for the tokens of one sample")
    require_metric(metric)
    rows = run.sample(sample)
    place, cells = cells_at(Run(rows, run.manifest).values(metric), metric, site, f"the run of {run.model}")
    n = rows.sizes["token"]
    window = np.arange(n)[tokens or slice(None)]
    if len(window) == 0:
        raise SelectionError(f"tokens={tokens} leaves none of the sample's {n} tokens")
    name = str(rows["sample_id"].values[0])
    count = f"{n} tokens" if len(window) == n else f"{len(window)} of {n} tokens"
    shows = f"one sample ({plain(name)}, {count}) at {place}: no mean, {NO_INTERVAL}"
    colours: dict[str, Any] = {"scale": SCALES[metric], "limits": limits}
    if metric == "agrees":
        classes = {1.0: "the final policy's\nmost likely token", 0.0: "another token"}
        patches = [Patch(color=AGREEMENT(value), label=text) for value, text in classes.items()]
        colours = {"scale": Scale(AGREEMENT, low=0.0, high=1.0), "classes": patches}
    return token_heat_map(
        cells[:, window],
        rows.isel(token=window),
        run.layers,
        label=metric_label(metric, mean=False),
        title=f"{run.model} · sample {name} · {place}",
        ax=ax,
        caption=describe_runs(run, shows=[shows, hatched_text(cells[:, window])]),
        **colours,
    )
