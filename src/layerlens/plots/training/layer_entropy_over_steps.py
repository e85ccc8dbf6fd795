"""The entropy of every layer's policy over training."""

from __future__ import annotations

from matplotlib.axes import Axes

from layerlens.metrics.difference import change_since_first
from layerlens.plots.kit.caption import MONITOR_MEAN, NO_INTERVAL
from layerlens.plots.kit.cells import hatched_text
from layerlens.plots.kit.labels import metric_label
from layerlens.plots.kit.scale import DIVERGING, SCALES
from layerlens.plots.kit.series import by_layer
from layerlens.plots.kit.snapshots import marks_text, single_heat_map
from layerlens.plots.kit.style import styled
from layerlens.results.training_log import TrainingLog


@styled
def layer_entropy_over_steps(log: TrainingLog, *, change: bool = False, ax: Axes | None = None) -> Axes:
    """Mean entropy of every layer's policy (at resid_post), layer × snapshot; the layer in training is outlined.

    Args:
        log: the training to draw.
        change: draws the change since the first snapshot instead, in colours that diverge from zero.
        ax: axes to draw into; a new figure by default.

    Raises:
        SelectionError: the run has no monitor.
    """
    steps, layers, values = by_layer(log, "entropy/layer_")
    scale, label = SCALES["entropy"], metric_label("entropy")
    if change:
        values = change_since_first(values)
        scale, label = DIVERGING, f"mean entropy of the internal policy, change since step {steps[0]} [nats]"
    shows = ["resid_post", hatched_text(values), *marks_text(log, steps, layers), MONITOR_MEAN, NO_INTERVAL]
    return single_heat_map(log, steps, layers, values, scale, label, shows, ax)
