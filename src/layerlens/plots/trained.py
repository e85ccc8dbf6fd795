"""Figures of the layer in training: beside the layers above it, and what attention and FFN do meanwhile."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.patches import Rectangle

from layerlens.plots.axis import dress, open_frame, set_title
from layerlens.plots.canvas import new_figure, settle
from layerlens.plots.caption import add_caption
from layerlens.plots.labels import metric_label
from layerlens.plots.looks import by_layer, draw_looks
from layerlens.plots.mesh import hatched
from layerlens.plots.steps import (
    MEAN,
    Series,
    column,
    describe_logs,
    draw_series,
    figure_legend,
    interval_text,
    mark_phases,
    phase_patches,
    step_axis,
)
from layerlens.plots.style import MODULE_LOOKS, MODULE_NAMES, SCALES, Scale, look, styled
from layerlens.results.training_log import TrainingLog

CHANGE = Scale("RdBu_r", centred=True)


@styled
def refinement(log: TrainingLog) -> np.ndarray:
    """The trained layer and the layers above it: how alike their residual streams are, and how far their policies lie apart.

    On the left the mean over the layers above, the next and the last of them; on the right every layer above, layer × look,
    where there are several.

    Returns:
        A 2 × 2 array of Axes: similarity above, KL from the layer's policy to the others' below. 2 × 1 with one layer above.

    Raises:
        SelectionError: the run has no monitor, or it watched the last layer, which has none above.
    """
    _, above, _ = by_layer(log, "similarity/to_")
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
    for row, (name, title, label, scale) in zip(axes, parts, strict=True):
        curves = [column(log.monitor, f"{name}/{key}") for key in names.values()]
        for number, (shown, curve) in enumerate(zip(names, curves, strict=True)):
            draw_series(row[0], curve, look(number), shown, 1)
        _dress_line(row[0], log, label)
        if several:
            steps, _, values = by_layer(log, f"{name}/to_")
            draw_looks(row[1], log, steps, above, values, scale, label)
        set_title(row[-1], title, pad=16.0 if several and log.internal else 5.0)
    axes[1, 0].set_ylim(bottom=min(0.0, axes[1, 0].get_ylim()[0]))
    shows = f"layer {log.watched} against the layers above it"
    return _finish(log, axes, curves, shows, hatched(values) if several else "")


@styled
def module_entropy(log: TrainingLog) -> np.ndarray:
    """What attention and FFN do over training: entropy of what they write (attn_out, ffn_out), and their change of entropy ΔS.

    On the left ΔS of the watched layer's modules with its interval, then entropy and ΔS of every layer, layer × look.

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
        draw_series(left, curves[-1], MODULE_LOOKS[module], f"{name} of layer {log.watched}", 1)
        _dress_line(left, log, f"ΔS of {name}, layer {log.watched} [nats]")
        draw_looks(middle, log, steps, layers, entropy, SCALES["entropy"], f"mean entropy of {module}_out [nats]")
        draw_looks(right, log, steps, layers, change, CHANGE, f"mean ΔS of {name} [nats]")
        for ax, title in ((middle, f"entropy of what {name} writes"), (right, f"ΔS of {name}")):
            set_title(ax, title, pad=16.0 if log.internal else 5.0)  # above the names of the phases
    return _finish(log, axes, curves, f"ΔS = S(out) − S(in) of a module; left: those of layer {log.watched}")


def _dress_line(ax: Axes, log: TrainingLog, label: str) -> None:
    mark_phases(ax, [log])
    open_frame(ax)
    step_axis(ax)
    ax.set_ylabel(label)


def _finish(log: TrainingLog, axes: np.ndarray, curves: Sequence[Series], *shows: str) -> np.ndarray:
    """Legend, caption and the run's name; steps are numbered below the last row alone."""
    figure = axes[0, 0].get_figure(root=True)
    lines = {handle.get_label(): handle for ax in axes[:, 0] for handle in ax.get_legend_handles_labels()[0]}
    figure_legend(figure, [*lines.values(), *phase_patches(log.internal)])
    outlined = "outlined: the layer in training" if any(isinstance(patch, Rectangle) for patch in axes[0, -1].patches) else ""
    add_caption(figure, describe_logs([log], log.name, *shows, outlined, MEAN, interval_text(curves)))
    for ax in axes[0]:
        ax.set_xlabel("")
    settle(axes[0, 0])
    for ax in axes.flat:
        dress(ax)
    return axes
