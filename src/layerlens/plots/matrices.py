"""How alike the residual stream is at different layers."""

from __future__ import annotations

from typing import Unpack

import numpy as np
from matplotlib.axes import Axes

from layerlens.errors import SelectionError
from layerlens.plots.axis import head, number_layers
from layerlens.plots.canvas import axes_size, new_figure, settle
from layerlens.plots.caption import describe, finish
from layerlens.plots.data import MeanOptions, mean_alone
from layerlens.plots.labels import metric_label
from layerlens.plots.mesh import color_bar, draw_mesh, hatched, normalize
from layerlens.plots.style import SCALES, Scale, styled
from layerlens.results import Run

VARIABLES = {"cosine": "similarity", "cka": "cka"}
CONTOURS = {0.5: "dotted", 0.7: "dashed", 0.9: "solid"}


@styled
def similarity(run: Run, kind: str = "cosine", *, ax: Axes | None = None, **mean: Unpack[MeanOptions]) -> Axes:
    """Similarity of resid_post between all layers, L × L, mean over samples.

    Lines run where it crosses 0.5, 0.7 and 0.9. Colours are sequential up to 1; with similarities under -0.05 they diverge
    from 0.

    Args:
        kind: "cosine" (token-averaged) or "cka" (debiased, linear).
        ax: axes to draw into; a new figure by default.
        mean: as in `Run.mean`.

    Raises:
        SelectionError: an unknown kind, or the run was analysed without similarity.
    """
    if kind not in VARIABLES:
        raise SelectionError(f"unknown kind {kind!r}: choose from {', '.join(VARIABLES)}")
    name = VARIABLES[kind]
    matrix = mean_alone(run, name, mean)
    values = matrix["mean"].values
    scale = SCALES[name]
    finite = values[np.isfinite(values)]
    if finite.size and finite.min() < -0.05:
        scale = Scale("RdBu_r", low=-1.0, high=1.0)
    side = float(np.clip(2.6 + 0.06 * len(run.layers), 3.2, 6))
    target = ax or new_figure(side + 1.0, side + 0.6).subplots()
    mesh = draw_mesh(target, values, normalize(scale, values), scale)
    target.set_aspect("equal")
    bar = color_bar(target, mesh, values, metric_label(name))
    levels = [level for level in CONTOURS if finite.size and finite.min() < level < finite.max()]
    if levels and min(values.shape) > 2:
        color = "0.2" if scale.cmap == "RdBu_r" else "white"
        bar.add_lines(target.contour(values, levels=levels, colors=color, linewidths=0.8, linestyles=[CONTOURS[level] for level in levels]))
    settle(target)
    inches = min(axes_size(target))
    number_layers(target.xaxis, run.layers, inches, apart=0.22, rows=True)
    number_layers(target.yaxis, run.layers, inches, apart=0.14, rows=True)
    head(target, run.model)
    # it needs no vocabulary, so rows that were not drawn to be decoded count as well
    shows = [hatched(values), "similarity of every token" if run.tokens_per_sample else ""]
    return finish(target, ax, describe(run, matrix.attrs, shows="\u00a0· ".join(filter(None, shows)), interval=False))
