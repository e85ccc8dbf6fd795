"""How alike the residual stream is at different layers."""

from __future__ import annotations

from typing import Unpack

import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import QuadMesh

from layerlens.errors import SelectionError
from layerlens.plots.kit.axes import set_title
from layerlens.plots.kit.caption import NO_INTERVAL, describe_runs
from layerlens.plots.kit.cells import hatched_text
from layerlens.plots.kit.figure import axes_size
from layerlens.plots.kit.heat_map import heat_map
from layerlens.plots.kit.labels import metric_label
from layerlens.plots.kit.layer_axis import number_axis
from layerlens.plots.kit.run_data import MeanOptions, mean_without_interval
from layerlens.plots.kit.scale import SCALES, Scale
from layerlens.plots.kit.style import styled
from layerlens.results import Run

VARIABLES = {"cosine": "similarity", "cka": "cka"}
CONTOURS = {0.5: "dotted", 0.7: "dashed", 0.9: "solid"}


@styled
def similarity(run: Run, kind: str = "cosine", *, ax: Axes | None = None, **mean: Unpack[MeanOptions]) -> Axes:
    """Similarity of resid_post between all layers, L × L, mean over samples.

    Contours are drawn at 0.5, 0.7 and 0.9. Colours are sequential up to 1; if a similarity lies under -0.05, the colours diverge
    from 0.

    Args:
        run: what to draw.
        kind: "cosine" (token-averaged) or "cka" (debiased, linear).
        ax: axes to draw into; a new figure by default.
        mean: keyword arguments of `Run.mean`.

    Raises:
        SelectionError: an unknown kind, or the run was analysed without similarity.
    """
    if kind not in VARIABLES:
        raise SelectionError(f"unknown kind {kind!r}: choose from {', '.join(VARIABLES)}")
    name = VARIABLES[kind]
    matrix = mean_without_interval(run, name, mean)
    values = matrix["mean"].values
    finite = values[np.isfinite(values)]
    scale = Scale("RdBu_r", low=-1.0, high=1.0) if finite.size and finite.min() < -0.05 else SCALES[name]
    crossed = [level for level in CONTOURS if finite.size and finite.min() < level < finite.max()]
    contours = {level: CONTOURS[level] for level in crossed} if min(values.shape) > 2 else {}

    def number(ax: Axes, _: QuadMesh) -> None:
        inches = min(axes_size(ax))
        number_axis(ax.xaxis, run.layers, inches, apart=0.22, rows=True)
        number_axis(ax.yaxis, run.layers, inches, apart=0.14, rows=True)
        set_title(ax, run.model)

    side = float(np.clip(2.6 + 0.06 * len(run.layers), 3.2, 6))
    # similarity needs no unembedding, so it counts the rows as well that were not drawn to be decoded
    shows = [hatched_text(values), "similarity over all its rows, decoded or not" if run.tokens_per_sample else ""]
    return heat_map(
        values,
        scale,
        metric_label(name),
        ax=ax,
        size=(side + 1.0, side + 0.6),
        contours=contours,
        before_layout=lambda ax: ax.set_aspect("equal"),
        after_layout=number,
        caption=describe_runs(run, matrix.attrs, shows=shows, interval=NO_INTERVAL),
    )
