"""The layer in training beside the layers above it."""

from __future__ import annotations

import numpy as np

from layerlens.plots.kit.axes import set_title
from layerlens.plots.kit.cells import hatched_text
from layerlens.plots.kit.figure import new_figure
from layerlens.plots.kit.labels import metric_label
from layerlens.plots.kit.scale import SCALES, Scale
from layerlens.plots.kit.series import by_layer, column
from layerlens.plots.kit.snapshots import outlined_text, snapshot_heat_map
from layerlens.plots.kit.steps import draw_series, frame_steps
from layerlens.plots.kit.style import line_style, styled
from layerlens.plots.kit.watched_layer import complete_figure
from layerlens.results.training_log import TrainingLog


@styled
def refinement(log: TrainingLog) -> np.ndarray:
    """The watched layer and the layers above it: how similar their residual streams are, and how far apart their policies.

    On the left the mean over the layers above, the next and the last of them, with their intervals; on the right every layer
    above, layer × snapshot, if there are several.

    Args:
        log: the training to draw.

    Returns:
        A 2 × 2 array of Axes: similarity in the first row, KL from the layer's policy to the others' in the second. 2 × 1 if
        there is one layer above.

    Raises:
        SelectionError: the run has no monitor, or its monitor watched the last layer, which has none above.
    """
    steps, above, _ = by_layer(log, "similarity/to_")
    several = len(above) > 1
    figure = new_figure(8.4 if several else 4.6, 5.0)
    axes: np.ndarray = figure.subplots(2, 1 + several, width_ratios=(1, 1.05)[: 1 + several], sharex="col", squeeze=False)
    names = {f"mean of layers {above[0]} to {above[-1]}" if several else f"layer {above[0]}": "above"}
    if several:
        names |= {f"layer {above[0]}, the next": f"to_{above[0]}", f"layer {above[-1]}, the last": f"to_{above[-1]}"}
    parts = (
        ("similarity", "similarity of the residual stream (resid_post)", metric_label("similarity", mean=False), SCALES["similarity"]),
        ("kl", "KL to the policies above (resid_post)", f"KL(π of layer {log.watched} ‖ π) [nats]", Scale("magma")),
    )
    shows = [f"layer {log.watched} against the layers above it"]
    for row, (name, title, label, scale) in zip(axes, parts, strict=True):
        curves = [column(log.monitor, f"{name}/{key}") for key in names.values()]
        for number, (shown, curve) in enumerate(zip(names, curves, strict=True)):
            draw_series(row[0], curve, line_style(number), shown)
        frame_steps(row[0], [log], label)
        if not several:
            set_title(row[0], title)
            continue
        _, _, values = by_layer(log, f"{name}/to_")
        snapshot_heat_map(log, steps, above, values, scale, label, ax=row[1], title=title)
    if several:
        shows += [hatched_text(values), outlined_text(log, steps, above)]
    axes[1, 0].set_ylim(bottom=min(0.0, axes[1, 0].get_ylim()[0]))
    return complete_figure(log, axes, curves, shows)
