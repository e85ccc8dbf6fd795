"""What changed between two runs of one model: layer × site over the data set, or layer × token of one text."""

from __future__ import annotations

from typing import Unpack

import numpy as np
from matplotlib.axes import Axes

from layerlens.errors import SelectionError
from layerlens.metrics.difference import contains_zero
from layerlens.plots.kit.axes import set_title
from layerlens.plots.kit.caption import NO_INTERVAL, describe_runs
from layerlens.plots.kit.cells import dot_cells, hatched_text
from layerlens.plots.kit.figure import axes_size, run_layout
from layerlens.plots.kit.heat_map import heat_map, label_sites
from layerlens.plots.kit.labels import metric_label, plain
from layerlens.plots.kit.layer_axis import number_axis
from layerlens.plots.kit.run_data import MeanOptions, column_dim, require_metric
from layerlens.plots.kit.scale import DIVERGING, Limits
from layerlens.plots.kit.style import styled
from layerlens.plots.kit.tokens import cells_at, token_heat_map
from layerlens.results import Run
from layerlens.results.difference import difference, sample_difference


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
    """How much more of a metric `after` has than `before`: layer × site of the mean, or layer × token of one sample.

    The numbers are those of `layerlens.difference`. In a mean, dots mark cells whose bootstrap interval contains zero; the caption
    says whether the interval is over paired samples.

    Args:
        before, after: runs with the same norm and layers, such as two snapshots of a training monitor.
        metric: `entropy`, `entropy_change`, `logp_next`, `kl_to_final`, `agrees`, ...
        sample: number or id of a sample of which both runs hold the same tokens; None for the mean.
        site: for a sample, the site (by default `resid_post`) or module (by default `ffn`); for the mean, the only column to draw.
        limits: ends of the colour scale, to compare figures; symmetric around zero by default.
        ax: axes to draw into; a figure of fitting size by default.
        mean: keyword arguments of `Run.mean`.

    Raises:
        SelectionError: the runs differ in layers, norm or, for one sample, tokens, or one lacks the metric, site or sample.
    """
    require_metric(metric)
    if sample is None:
        return _of_means(before, after, metric, site, limits, ax, mean)
    if mean:
        raise SelectionError(f"{', '.join(mean)} belongs to a difference of means; leave out sample=")
    return _of_tokens(before, after, metric, sample, site, limits, ax)


def _of_means(before: Run, after: Run, metric: str, site: str | None, limits: Limits, ax: Axes | None, options: MeanOptions) -> Axes:
    change = difference(before, after, metric, site=site, **options)
    dim = column_dim(change)
    names = [str(name) for name in change[dim].values]
    values, low, high = (change[name].values for name in ("mean", "low", "high"))

    def prepare(ax: Axes) -> None:
        label_sites(ax, names, dim)
        dot_cells(ax, contains_zero(low, high) & np.isfinite(values))
        set_title(ax, _title(before, after))
        run_layout(ax)

    means = [
        {**change.attrs, "samples": change.attrs[name], "problems": change.attrs[name]} for name in ("samples_before", "samples_after")
    ]
    single = min(int(mean["samples"]) for mean in means) < 2
    kind = "paired samples" if change.attrs["paired"] else "samples of each run"
    known = f"dots: the {100 * change.attrs['level']:g}% bootstrap interval over {kind} contains 0"
    shows = ["after − before", hatched_text(values), f"1 sample: {NO_INTERVAL}" if single else known]
    return heat_map(
        values,
        DIVERGING,
        f"difference of {metric_label(metric)}",
        ax=ax,
        size=(1.9 + 0.5 * max(len(names), 5), float(np.clip(1.7 + 0.15 * values.shape[0], 3, 9.5))),
        limits=limits,
        before_layout=prepare,
        after_layout=lambda ax, _: number_axis(ax.yaxis, before.layers, axes_size(ax)[1], apart=0.12, rows=True),
        caption=describe_runs([before, after], means, shows=shows, interval=""),
    )


def _of_tokens(before: Run, after: Run, metric: str, sample: int | str, site: str | None, limits: Limits, ax: Axes | None) -> Axes:
    rows = before.sample(sample)
    name = str(rows["sample_id"].values[0])
    place, cells = cells_at(sample_difference(before, after, sample, metric), metric, site, "both runs")
    shown = f"after − before, one sample ({plain(name)}, {cells.shape[1]} tokens) at {place}: no mean, {NO_INTERVAL}"
    return token_heat_map(
        cells,
        rows,
        before.layers,
        DIVERGING,
        f"difference of {metric_label(metric, mean=False)}",
        title=f"{_title(before, after)} · sample {name} · {place}",
        ax=ax,
        limits=limits,
        caption=describe_runs([before, after], shows=[shown, hatched_text(cells)]),
    )


def _title(before: Run, after: Run) -> str:
    if before.model != after.model:
        return f"{after.model} − {before.model}"
    if before.path is not None and after.path is not None and before.path.name != after.path.name:
        return f"{before.model} · {after.path.name} − {before.path.name}"
    return f"{before.model} · after − before"
