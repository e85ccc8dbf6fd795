"""What a training run earns, and what happens inside the model meanwhile."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from layerlens.plots.kit.panels import draw_panels
from layerlens.plots.kit.series import as_logs
from layerlens.plots.kit.style import styled
from layerlens.results.training_log import TrainingLog


@styled
def training_dynamics(
    logs: TrainingLog | Sequence[TrainingLog],
    metrics: Sequence[str] = ("reward", "policy_entropy", "response_length", "perplexity"),
    *,
    change: bool = False,
    smooth: int | None = None,
    columns: int | None = None,
) -> np.ndarray:
    """A panel per metric over the optimizer steps, any number of runs in each; internal phases shaded, their ends marked.

    What the trainer logs (`reward`, `entropy`, `completions/mean_length`, ...) is a thick smoothed line over the faint one as
    logged; what the monitor measures (`policy_entropy`, `perplexity`, `response_length`, ...) is a thin line from snapshot to
    snapshot.

    Args:
        logs: one, or several to compare.
        metrics: columns of the monitor or of the log.
        change: draws what the monitor's metrics have changed since the first snapshot, with the interval of paired problems. It is much
            narrower than what two bands that overlap suggest, as problems differ more than a problem changes. The log has no changes.
        smooth: number of log entries that the centred mean of a line takes, within a training phase; 1 draws the log alone, None
            chooses by the length of the log.
        columns: columns of the grid; by default 2, or 3 for more than four metrics.

    Returns:
        An array of Axes, one per metric.

    Raises:
        SelectionError: no log or metric is given, a run lacks a metric, or smooth is under 1.
    """
    return draw_panels(as_logs(logs), list(metrics), smooth, columns, change)
