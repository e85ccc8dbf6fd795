"""What the figures of the watched layer share: curves on the left, heat maps beside them, one legend and caption."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from layerlens.plots.kit.caption import MONITOR_MEAN, complete_axes, describe_logs
from layerlens.plots.kit.figure import figure_of
from layerlens.plots.kit.series import Series
from layerlens.plots.kit.steps import figure_legend, interval_text, phase_patches
from layerlens.results.training_log import TrainingLog


def complete_figure(log: TrainingLog, axes: np.ndarray, curves: Sequence[Series], shows: Sequence[str]) -> np.ndarray:
    """Adds legend and caption; steps are named below the last row alone.

    Args:
        log: the training that is drawn.
        axes: rows × columns, curves in the first column.
        curves: the series in it, whose bands the caption explains.
        shows: what else the caption says.

    Returns:
        `axes`.
    """
    lines = {handle.get_label(): handle for ax in axes[:, 0] for handle in ax.get_legend_handles_labels()[0]}
    figure_legend(figure_of(axes[0, 0]), [*lines.values(), *phase_patches(log.internal)])
    for ax in axes[0]:
        ax.set_xlabel("")
    complete_axes(axes, describe_logs([log], log.name, *shows, MONITOR_MEAN, interval_text(curves)))
    return axes
