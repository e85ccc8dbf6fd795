"""Model families side by side: layer × site heat maps on relative depth, in one colour scale."""

from __future__ import annotations

from collections.abc import Sequence
from math import ceil
from typing import Unpack

import numpy as np

from layerlens.errors import SelectionError
from layerlens.plots.axis import labels_of
from layerlens.plots.canvas import new_figure
from layerlens.plots.caption import add_caption, describe
from layerlens.plots.data import Limits, MeanOptions, as_runs, mean_alone, require_metric, second_dim
from layerlens.plots.labels import families, metric_label, wrapped
from layerlens.plots.mesh import color_bar, draw_mesh, hatched, normalize
from layerlens.plots.style import MODULE_NAMES, SCALES, styled
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
    """A heat map of layer × site for each run; models of different depth compare on l / L, and share one colour bar.

    Args:
        site: "all", one or several; a run that lacks one leaves its column open (hatched), as do layers not analysed.
        metric: as in `entropy_heatmap`.
        columns: of the grid, at most four by default.
        limits: ends of the colour scale; the data's by default.
        mean: `over`, `rows`, `drop_first`, as in `Run.mean`.

    Returns:
        A row of the Axes, one per run, in their order.

    Raises:
        SelectionError: a run lacks the metric, or no run has the sites.
    """
    runs = as_runs(runs)
    for run in runs:
        require_metric(run, metric)
    means = [mean_alone(run, metric, mean) for run in runs]
    dim = second_dim(means[0])
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
    for number, (ax, run, values, label) in enumerate(zip(grid.flat, runs, full, labels_of(runs), strict=False)):
        mesh = draw_mesh(ax, values, norm, scale, y=np.linspace(0, 1, run.n_layers + 1))
        shown = [MODULE_NAMES.get(name, name) if number + columns >= len(runs) else "" for name in names]
        ax.set_xticks(range(len(names)), shown, rotation=60, ha="right", rotation_mode="anchor")
        ax.set_yticks(np.linspace(0, 1, 5))
        if number % columns == 0:
            ax.set_ylabel("relative depth  l / L")
        ax.set_title(wrapped(f"{label}\n{run.n_layers} layers", panel, 8.0), fontsize=8, fontfamily=families())
    for ax in list(grid.flat)[len(runs) :]:
        ax.remove()
    axes: np.ndarray = np.array(list(grid.flat)[: len(runs)], dtype=object)
    color_bar(axes, mesh, pooled, metric_label(metric))
    add_caption(figure, describe(runs, [m.attrs for m in means], shows=hatched(pooled), interval=False))
    return axes
