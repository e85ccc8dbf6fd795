"""Model families side by side: layer × site heat maps on relative depth, in one colour scale."""

from __future__ import annotations

from collections.abc import Sequence
from math import ceil
from typing import Unpack

import numpy as np

from layerlens.errors import SelectionError
from layerlens.plots.kit.caption import NO_INTERVAL, add_caption, describe_runs
from layerlens.plots.kit.cells import color_bar, draw_cells, hatched_text
from layerlens.plots.kit.figure import new_figure
from layerlens.plots.kit.labels import families, metric_label, wrapped
from layerlens.plots.kit.run_data import MeanOptions, as_runs, column_dim, drawn_metric, legend_names, mean_without_interval, require_metric
from layerlens.plots.kit.scale import SCALES, Limits, normalize
from layerlens.plots.kit.style import MODULE_NAMES, styled
from layerlens.results import Run
from layerlens.types import MODULE_SITES, SITES, resolve_sites


@styled
def family_grid(
    runs: Run | Sequence[Run],
    site: str | Sequence[str] = "all",
    metric: str = "entropy",
    *,
    columns: int | None = None,
    limits: Limits = None,
    **mean: Unpack[MeanOptions],
) -> np.ndarray:
    """A heat map of layer × site for each run, on relative depth l / L, all in one colour scale.

    Args:
        runs: what to draw.
        site: "all", one or several; the cells of a site or layer that a run does not hold stay open (hatched).
        metric: as in `entropy_heatmap`.
        columns: columns of the grid, at most four by default.
        limits: ends of the colour scale; the data's by default.
        mean: the keyword arguments `over`, `rows`, `segment` and `drop_first` of `Run.mean`.

    Returns:
        A one-dimensional array of Axes, one per run, in their order.

    Raises:
        SelectionError: a run lacks the metric, or no run has the sites.
    """
    runs, metric = as_runs(runs), drawn_metric(metric)
    require_metric(metric)
    means = [mean_without_interval(run, metric, mean) for run in runs]
    dim = column_dim(means[0])
    wanted = resolve_sites(site) if dim == "site" else tuple(MODULE_SITES)
    there = {str(name) for m in means for name in m[dim].values}
    names = [name for name in (SITES if dim == "site" else MODULE_SITES) if name in wanted and name in there]
    if not names:
        raise SelectionError(f"no run has {', '.join(wanted)}; they have {', '.join(sorted(there))}")
    full = [m["mean"].reindex({"layer": range(1, run.n_layers + 1), dim: names}).values for run, m in zip(runs, means, strict=True)]

    columns = min(len(runs), columns or ceil(len(runs) / ceil(len(runs) / 4)))
    rows = ceil(len(runs) / columns)
    panel = 0.55 + 0.26 * len(names)
    figure = new_figure(max(3.6, 1.5 + columns * panel), 0.6 + 2.9 * rows)
    grid = figure.subplots(rows, columns, sharey=True, squeeze=False)
    scale = SCALES[metric]
    pooled = np.concatenate([values.ravel() for values in full])
    norm = normalize(scale, pooled, limits)
    for number, (ax, run, values, label) in enumerate(zip(grid.flat, runs, full, legend_names(runs), strict=False)):
        cells = draw_cells(ax, values, norm, scale, y=np.linspace(0, 1, run.n_layers + 1))
        shown = [MODULE_NAMES.get(name, name) if number + columns >= len(runs) else "" for name in names]
        ax.set_xticks(range(len(names)), shown, rotation=60, ha="right", rotation_mode="anchor")
        ax.set_yticks(np.linspace(0, 1, 5))
        if number % columns == 0:
            ax.set_ylabel("relative depth  l / L")
        ax.set_title(wrapped(f"{label}\n{run.n_layers} layers", panel, 8.0), fontsize=8, fontfamily=families())
    for ax in list(grid.flat)[len(runs) :]:
        ax.remove()
    axes: np.ndarray = np.array(list(grid.flat)[: len(runs)], dtype=object)
    color_bar(axes, cells, pooled, metric_label(metric))
    add_caption(figure, describe_runs(runs, [m.attrs for m in means], shows=[hatched_text(pooled)], interval=NO_INTERVAL))
    return axes
