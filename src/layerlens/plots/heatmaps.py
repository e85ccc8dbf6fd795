"""Heat maps: one sample's tokens layer by layer, or the whole run's sites layer by layer."""

from __future__ import annotations

from typing import Unpack

import numpy as np
from matplotlib.axes import Axes

from layerlens.errors import SelectionError
from layerlens.plots.axis import head, number_layers
from layerlens.plots.canvas import axes_size, new_figure, settle
from layerlens.plots.caption import describe, finish
from layerlens.plots.data import Limits, MeanOptions, at, mean_alone, require_metric, second_dim
from layerlens.plots.labels import metric_label
from layerlens.plots.mesh import color_bar, draw_mesh, hatched, normalize, write_values
from layerlens.plots.style import MODULE_NAMES, SCALES, styled
from layerlens.plots.tokens import token_heatmap
from layerlens.results import Run

ROW_INCHES = 0.15


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
        sample: a sample's number or id; None for the mean over the run, at every site.
        site: where hidden vectors are read; for `entropy_change` and `stream_cosine` a module. By default `resid_post` (or
            `ffn`) of a sample, and all of them for the whole run.
        metric: `entropy`, `logp_next`, `kl_to_final`, `agrees`, `entropy_change`, ... or for the whole run `perplexity`.
        tokens: which of the sample's rows to draw, as in a list; all by default. Labels are thinned, and numbered by
            position, where they would overlap.
        limits: ends of the colour scale, to compare figures; the data's by default.
        annotate: the whole run's means as numbers in the cells; where they fit by default.
        ax: axes to draw into; a figure of fitting size by default.
        mean: `over`, `rows`, `drop_first` of the means, as in `Run.mean`.

    Raises:
        SelectionError: the run lacks the metric, site or sample, or the token window is empty.
    """
    if sample is None:
        if tokens is not None:
            raise SelectionError("tokens= belongs to one sample's heat map; add sample=, a number or an id")
        return _by_site(run, site, metric, limits, annotate, ax, mean)
    if mean or annotate is not None:
        raise SelectionError(f"{', '.join(mean) or 'annotate'} belongs to the whole run's heat map; leave out sample=")
    return token_heatmap(run, sample, site, metric, tokens, limits, ax)


def _by_site(run: Run, site: str | None, metric: str, limits: Limits, annotate: bool | None, ax: Axes | None, options: MeanOptions) -> Axes:
    require_metric(run, metric)
    mean = mean_alone(run, metric, options)
    dim = second_dim(mean)
    names = [str(name) for name in mean[dim].values] if site is None else [site]
    values = np.stack([at(mean, name, run)["mean"].values for name in names], axis=-1)
    target = ax or new_figure(1.9 + 0.5 * max(len(names), 3), float(np.clip(1.6 + ROW_INCHES * len(run.layers), 3, 9.5))).subplots()
    scale = SCALES[metric]
    mesh = draw_mesh(target, values, normalize(scale, values, limits), scale)
    target.set_xticks(range(len(names)), [MODULE_NAMES.get(name, name) for name in names], rotation=45, ha="right", rotation_mode="anchor")
    target.set_xlabel(f"{dim}, in the order the data flows" if dim == "site" else dim)
    head(target, run.model)
    color_bar(target, mesh, values, metric_label(metric))
    settle(target)
    width, height = axes_size(target)
    number_layers(target.yaxis, run.layers, height, apart=0.12, rows=True)
    fits = height / len(run.layers) > 0.1 and width / len(names) > 0.3 and metric != "perplexity"
    if fits if annotate is None else annotate:
        write_values(target, mesh, values, digits=2 if scale.centred or scale.high == 1.0 else 1)
    return finish(target, ax, describe(run, mean.attrs, shows=hatched(values), interval=False))
