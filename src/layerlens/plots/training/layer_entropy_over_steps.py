"""The entropy of every layer's policy over training."""

from __future__ import annotations

import numpy as np
from matplotlib.axes import Axes

from layerlens.metrics.difference import change_since_first, contains_zero
from layerlens.plots.kit.caption import MONITOR_MEAN, NO_INTERVAL
from layerlens.plots.kit.cells import dot_cells, hatched_text
from layerlens.plots.kit.labels import metric_label
from layerlens.plots.kit.scale import DIVERGING, SCALES
from layerlens.plots.kit.series import by_layer, ends_by_layer
from layerlens.plots.kit.snapshots import marks_text, single_heat_map
from layerlens.plots.kit.style import styled
from layerlens.results.training_log import CHANGE, HIGH, LOW, TrainingLog


@styled
def layer_entropy_over_steps(log: TrainingLog, *, change: bool = False, ax: Axes | None = None) -> Axes:
    """Mean entropy of every layer's policy (at resid_post), layer × snapshot; the layer in training is outlined.

    Args:
        log: the training to draw.
        change: draws the change since the first snapshot instead, in colours that diverge from zero. Dots mark cells whose interval
            over paired problems contains zero (none in trainings of before the monitor kept it).
        ax: axes to draw into; a new figure by default.

    Raises:
        SelectionError: the run has no monitor.
    """
    steps, layers, values = by_layer(log, "entropy/layer_")
    scale, label, interval = SCALES["entropy"], metric_label("entropy"), NO_INTERVAL
    unsure = np.zeros(values.shape, bool)
    if change:
        values = change_since_first(values)
        scale, label = DIVERGING, f"mean entropy of the internal policy, change since step {steps[0]} [nats]"
        low, high = (ends_by_layer(log, "entropy/layer_", layers, CHANGE + end) for end in (LOW, HIGH))
        unsure = contains_zero(low, high) & (steps > steps[0])
        if np.isfinite(low).any():
            interval = "dots: the 95% bootstrap interval over paired problems contains 0"
    shows = ["resid_post", hatched_text(values), *marks_text(log, steps, layers), MONITOR_MEAN, interval]
    target = single_heat_map(log, steps, layers, values, scale, label, shows, ax)
    dot_cells(target, unsure, bottom=layers[0])
    return target
