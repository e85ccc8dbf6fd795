"""Any metric by layer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Unpack

from matplotlib.axes import Axes

from layerlens.plots.kit.curves import metric_curves
from layerlens.plots.kit.layer_axis import compare_relative
from layerlens.plots.kit.run_data import MeanOptions, as_runs, drawn_metric
from layerlens.plots.kit.style import styled
from layerlens.results import Run


@styled
def metric_by_layer(
    runs: Run | Sequence[Run],
    metric: str = "entropy",
    site: str = "resid_post",
    *,
    relative: bool | None = None,
    ax: Axes | None = None,
    **mean: Unpack[MeanOptions],
) -> Axes:
    """Any metric's mean by layer, one line per run with its bootstrap interval.

    Args:
        runs: one run, or several to compare.
        metric: `entropy`, `agrees`, `kl_to_final`, `logp_next`, `perplexity` (its logarithm, in nats per token), `kl_from_layer`, ...
        site: where hidden vectors are read; for `entropy_change` and `stream_cosine` a module.
        relative: depth as l / L; by default if the models differ in depth.
        ax: axes to draw into; a new figure by default.
        mean: keyword arguments of `Run.mean`.

    Raises:
        SelectionError: a run lacks the metric or the site.
    """
    runs = as_runs(runs)
    return metric_curves(runs, drawn_metric(metric), site, compare_relative(runs, relative), "nats", ax, mean)
