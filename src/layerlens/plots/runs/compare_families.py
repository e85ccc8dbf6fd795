"""Model families side by side: the entropy of the residual stream, and what the FFN does to it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Unpack

import numpy as np

from layerlens.plots.kit.axes import legend_above
from layerlens.plots.kit.caption import add_caption, describe_runs
from layerlens.plots.kit.curves import check_scale, draw_metric
from layerlens.plots.kit.figure import new_figure
from layerlens.plots.kit.layer_axis import depth_axis
from layerlens.plots.kit.run_data import MeanOptions, as_runs
from layerlens.plots.kit.style import styled
from layerlens.results import Run


@styled
def compare_families(runs: Sequence[Run], *, scale: str = "nats", **mean: Unpack[MeanOptions]) -> np.ndarray:
    """Two axes on relative depth: entropy of the residual stream, and ΔS of the FFN, one line per run in both.

    Layers that are not usable (no better than guessing) are hatched. Under norm none both panels compare scales, not models:
    `convergence` draws what does not depend on them.

    Args:
        runs: the runs to compare, of models of any depth.
        scale: "nats", or "share" for entropies as shares of each curve's own maximum.
        mean: keyword arguments of `Run.mean`.

    Returns:
        An array of the two Axes.

    Raises:
        SelectionError: a run lacks the entropies of resid_post, ffn_in or ffn_out, or the scale is unknown.
    """
    runs = as_runs(runs)
    check_scale(scale)
    figure = new_figure(8.2, 3.6 + 0.1 * len(runs))
    left, right = figure.subplots(1, 2)
    attrs, hatched = draw_metric(left, runs, "entropy", "resid_post", True, scale, mean)
    draw_metric(right, runs, "entropy_change", "ffn", True, "nats", mean)
    for ax in (left, right):
        depth_axis(ax, runs, relative=True)
    left.set_title("residual stream (resid_post)")
    right.set_title("FFN")
    legend_above(left)
    axes: np.ndarray = np.array([left, right], dtype=object)
    add_caption(figure, describe_runs(runs, attrs, shows=[hatched]))
    return axes
