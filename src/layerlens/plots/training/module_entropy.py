"""What attention and FFN do over training."""

from __future__ import annotations

import numpy as np

from layerlens.plots.kit.figure import new_figure
from layerlens.plots.kit.scale import DIVERGING, SCALES
from layerlens.plots.kit.series import by_layer, column
from layerlens.plots.kit.snapshots import outlined_text, snapshot_heat_map, title_above_phases
from layerlens.plots.kit.steps import draw_series, frame_steps
from layerlens.plots.kit.style import MODULE_NAMES, MODULE_STYLES, styled
from layerlens.plots.kit.watched_layer import complete_figure
from layerlens.results.training_log import TrainingLog


@styled
def module_entropy(log: TrainingLog) -> np.ndarray:
    """The entropy of what attention and FFN write (attn_out, ffn_out) over training, and their change of entropy ΔS.

    On the left ΔS of the watched layer's modules with its interval, then entropy and ΔS of every layer, layer × snapshot.

    Args:
        log: the training to draw.

    Returns:
        A 2 × 3 array of Axes: attention above, FFN below.

    Raises:
        SelectionError: the run has no monitor.
    """
    figure = new_figure(10.6, 5.0)
    axes: np.ndarray = figure.subplots(2, 3, width_ratios=(0.9, 1, 1), sharex="col", squeeze=False)
    curves = []
    for (left, middle, right), module in zip(axes, ("attn", "ffn"), strict=True):
        name = MODULE_NAMES[module]
        steps, layers, entropy = by_layer(log, f"entropy/{module}_")
        _, _, change = by_layer(log, f"entropy_change/{module}_")
        curves.append(column(log.monitor, f"entropy_change/{module}_{log.watched}"))
        left.axhline(0, color="0.6", linewidth=0.7, zorder=0)
        draw_series(left, curves[-1], MODULE_STYLES[module], f"{name} of layer {log.watched}")
        frame_steps(left, [log], f"ΔS of {name}, layer {log.watched} [nats]")
        snapshot_heat_map(log, steps, layers, entropy, SCALES["entropy"], f"mean entropy of {module}_out [nats]", ax=middle)
        snapshot_heat_map(log, steps, layers, change, DIVERGING, f"mean ΔS of {name} [nats]", ax=right)
        title_above_phases(middle, log, f"entropy of what {name} writes")
        title_above_phases(right, log, f"ΔS of {name}")
    shows = [f"ΔS = S(out) − S(in) of a module; left: those of layer {log.watched}", outlined_text(log, steps, layers)]
    return complete_figure(log, axes, curves, shows)
