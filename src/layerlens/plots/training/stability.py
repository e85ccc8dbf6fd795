"""How far repeated answers to one problem agree."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from layerlens.plots.kit.panels import draw_panels
from layerlens.plots.kit.series import as_logs
from layerlens.plots.kit.style import styled
from layerlens.results.training_log import TrainingLog


@styled
def stability(logs: TrainingLog | Sequence[TrainingLog]) -> np.ndarray:
    """How far repeated answers to one problem agree over training.

    The first axes show the share of pairs of answers that agree, the second the correlation of the paths that their entropies take.

    Args:
        logs: one, or several to compare.

    Returns:
        An array of two Axes.

    Raises:
        SelectionError: a run has no monitor, or its monitor took one answer per problem.
    """
    axes = draw_panels(as_logs(logs), ["stability/answers", "stability/entropy_path"], None, 2)
    axes[0].set_ylim(-0.03, 1.03)
    axes[1].set_ylim(min(-0.03, axes[1].get_ylim()[0]), 1.03)
    return axes
