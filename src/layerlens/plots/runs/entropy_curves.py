"""Mean entropy over depth."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Unpack

from matplotlib.axes import Axes

from layerlens.plots.kit.curves import check_scale, metric_curves
from layerlens.plots.kit.run_data import MeanOptions, as_runs
from layerlens.plots.kit.style import styled
from layerlens.results import Run


@styled
def entropy_curves(
    runs: Run | Sequence[Run],
    site: str = "resid_post",
    *,
    scale: str = "nats",
    relative: bool = True,
    ax: Axes | None = None,
    **mean: Unpack[MeanOptions],
) -> Axes:
    """Mean entropy over depth, one line per run with its bootstrap interval.

    Args:
        runs: one run, or several to compare.
        site: where hidden vectors are read; a residual site shows how each model's policy converges.
        scale: "nats", or "share" for shares of each curve's own maximum, to compare vocabularies of different size.
        relative: depth as l / L; else layers.
        ax: axes to draw into; a new figure by default.
        mean: keyword arguments of `Run.mean`.

    Raises:
        SelectionError: a run lacks entropy at the site, or the scale is unknown.
    """
    check_scale(scale)
    return metric_curves(as_runs(runs), "entropy", site, relative, scale, ax, mean)
