"""How far the weights move in training."""

from __future__ import annotations

import numpy as np
from matplotlib.axes import Axes

from layerlens.errors import SelectionError
from layerlens.plots.kit.caption import NO_INTERVAL
from layerlens.plots.kit.scale import Scale
from layerlens.plots.kit.series import by_layer
from layerlens.plots.kit.snapshots import marks_text, single_heat_map
from layerlens.plots.kit.style import styled
from layerlens.results.training_log import TrainingLog


@styled
def drift(log: TrainingLog, *, ax: Axes | None = None) -> Axes:
    """How far the weights of each layer have moved, layer × snapshot: ‖W − W₀‖ / ‖W₀‖. Cells of weights that have not moved are hatched.

    The embedding lies under the layers, and the unembedding, if it has weights of its own, above them.

    Args:
        log: the training to draw.
        ax: axes to draw into; a new figure by default.

    Raises:
        SelectionError: the run has no monitor, or no snapshot after its start.
    """
    steps, layers, values = by_layer(log, "drift/layer_")
    ends = {0: "drift/embedding", layers[-1] + 1: "drift/unembedding"}
    for row, name in ends.items():
        if name in log.monitor.columns:
            values = np.insert(values, 0 if row == 0 else len(values), log.monitor[name].to_numpy(np.float64), axis=0)
            layers = [row, *layers] if row == 0 else [*layers, row]
    later = steps > 0  # nothing has moved at the start
    if not later.any():
        raise SelectionError(f"the monitor of {log.name} has a snapshot of the start only: nothing can have moved yet")
    moved = np.where(values[:, later] > 0, values[:, later], np.nan)
    hatched = "" if np.isfinite(moved).all() else "hatched: not moved at all"
    shows = [hatched, *marks_text(log, steps[later], layers), NO_INTERVAL]
    label = "drift of weights  ‖W − W₀‖ / ‖W₀‖"
    target = single_heat_map(log, steps[later], layers, moved, Scale("viridis", low=0.0), label, shows, ax)
    named = {row: ends[row].split("/")[1] for row in layers if row in ends}
    numbered = [int(tick) for tick in target.get_yticks() if int(tick) not in named]
    ticks = sorted({*numbered, *named})
    target.set_yticks(ticks, [named.get(tick, str(tick)) for tick in ticks])
    return target
