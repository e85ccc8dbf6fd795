"""ΔS of modules by layer, with phases and the chosen layer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Unpack, get_args

import numpy as np
from matplotlib.axes import Axes

from layerlens.errors import SelectionError
from layerlens.plots.kit.axes import open_frame, title_and_legend
from layerlens.plots.kit.caption import complete_axes, describe_runs
from layerlens.plots.kit.curves import draw_curve
from layerlens.plots.kit.figure import axes_size, new_figure, run_layout
from layerlens.plots.kit.layer_axis import depth, depth_axis
from layerlens.plots.kit.run_data import MeanOptions
from layerlens.plots.kit.style import MODULE_NAMES, MODULE_STYLES, PHASE_TINTS, styled
from layerlens.plots.kit.unusable import hatch_unusable
from layerlens.results import Run
from layerlens.results.derived import require_module
from layerlens.selection.choice import LayerChoice
from layerlens.selection.recommendation import END
from layerlens.selection.words import percent
from layerlens.types import Module

Phases = Mapping[str, tuple[int, int] | None]
"""First and last layer of each phase, from 1; None for an empty phase."""


@styled
def entropy_change(
    run: Run,
    module: str | Sequence[str] = "ffn",
    *,
    phases: Phases | None = None,
    layer: int | None = None,
    choice: LayerChoice | None = None,
    ax: Axes | None = None,
    **mean: Unpack[MeanOptions],
) -> Axes:
    """ΔS = S(out) − S(in) of modules by layer, nats, with bootstrap intervals: above zero a module explores, below it commits.

    Layers that are not usable at resid_post (no better than guessing) are hatched.

    Args:
        run: what to draw.
        module: `ffn`, `attn`, `layer`, or several of them.
        phases: phases to shade, as in `LayerChoice.phases`: the first and last layer of exploration, integration and
            convergence, None for an empty phase.
        layer: the chosen layer to mark, as in `LayerChoice.layer`.
        choice: in place of `phases` and `layer`, the choice that has them: the layer is then named by its rule, which need not be
            the rule that `select_layer` recommends, and the caption says how stable the answer is.
        ax: axes to draw into; a new figure by default.
        mean: keyword arguments of `Run.mean`.

    Raises:
        SelectionError: the run lacks a module's sites, the marked layer or a phase lies outside its layers, or a choice is given
            beside phases or a layer.
    """
    modules = [module] if isinstance(module, str) else list(module)
    unknown = [name for name in modules if name not in get_args(Module)]
    if unknown or not modules:
        raise SelectionError(f"unknown module {', '.join(map(repr, unknown)) or '(none given)'}: choose from {', '.join(get_args(Module))}")
    label = f"chosen: layer {layer}"
    chosen: list[str] = []
    if choice is not None:
        if phases is not None or layer is not None:
            raise SelectionError("a choice has phases and a layer of its own: leave out phases= and layer=")
        phases, layer = choice.phases, choice.layer
        label, chosen = _words(choice)
    if layer is not None and layer not in run.layers:
        raise SelectionError(f"layer {layer} was not analysed in the run of {run.model}; it has {', '.join(map(str, run.layers))}")
    spans = _spans(run, phases)
    for name in modules:
        require_module(run.sites, run.manifest, name)  # type: ignore[arg-type]
    changes = run.mean("entropy_change", **mean)

    target = ax or new_figure(float(np.clip(4.0 + 0.09 * len(run.layers), 4.8, 8)), 3.3).subplots()
    x = depth(run, relative=False)
    for name in modules:
        draw_curve(target, x, changes.sel(module=name), MODULE_STYLES[name], MODULE_NAMES[name], markers=48)
    target.axhline(0, color="0.3", linewidth=0.8, zorder=0.5)
    if layer is not None:
        shown = "ffn" if "ffn" in modules else modules[0]
        _mark_layer(target, layer, float(changes["mean"].sel(module=shown, layer=layer)), label)
    target.set_ylabel("mean ΔS = S(out) − S(in) [nats]")
    open_frame(target)
    run_layout(target)
    depth_axis(target, [run], relative=False)
    title_and_legend(target, run.model)
    hatched = hatch_unusable(target, [run], "resid_post", False, mean)
    complete_axes(target, describe_runs(run, changes.attrs, shows=[hatched, *chosen]), given=ax)
    _shade_phases(target, spans)
    return target


def _words(choice: LayerChoice) -> tuple[str, list[str]]:
    """What the legend calls the layer of a choice, and what the caption says of it."""
    if choice.layer is None:
        said = f"the rule {choice.rule} names no layer"
    else:
        stable = "" if np.isnan(choice.frequency) else f", in {percent(choice.frequency)} of resamples"
        said = f"the rule {choice.rule} names layer {choice.layer}{stable}{f' (open: {END})' if choice.outcome == 'open' else ''}"
    label = f"{choice.rule}: layer {choice.layer}{' (open)' if choice.outcome == 'open' else ''}"
    return label, [said, *([choice.diagnosis] if choice.diagnosis else [])]


def _spans(run: Run, phases: Phases | None) -> dict[str, tuple[int, int]]:
    spans = {name: span for name, span in (phases or {}).items() if span is not None}
    for name, span in spans.items():
        if name not in PHASE_TINTS:
            raise SelectionError(f"unknown phase {name!r}: choose from {', '.join(PHASE_TINTS)}")
        if not 1 <= span[0] <= span[1] <= run.n_layers:
            raise SelectionError(f"{name} at layers {span[0]} to {span[1]} does not lie in 1..{run.n_layers} of {run.model}")
    return spans


def _shade_phases(ax: Axes, spans: Mapping[str, tuple[int, int]]) -> None:
    """Tints the ground of each phase and writes its name on top, upright if the phase is too narrow for the name."""
    if not spans:
        return
    left, right = ax.get_xlim()
    width, height = axes_size(ax)
    room = 0.14 / height
    for name, (first, last) in spans.items():
        begin, end = max(first - 0.5, left), min(last + 0.5, right)
        ax.axvspan(begin, end, color=PHASE_TINTS[name], zorder=-2, linewidth=0, label="_phase")
        if begin > left:
            ax.axvline(begin, color="0.6", linewidth=0.6, zorder=-1)
        length = 0.052 * len(name) + 0.14
        narrow = (end - begin) / (right - left) * width < length
        room = max(room, min(0.5, length / height)) if narrow else room
        ax.text(
            (begin + end) / 2, 0.985, name, transform=ax.get_xaxis_transform(), ha="center", va="top",
            rotation=90 if narrow else 0, fontsize=7, style="italic", color="0.25",
        )  # fmt: skip
    low, high = ax.get_ylim()
    ax.set_ylim(low, low + (high - low) / (1 - room))


def _mark_layer(ax: Axes, layer: int, value: float, label: str) -> None:
    """Marks a layer with a line, its value with a ring, and names it in the legend."""
    ax.axvline(layer, color="black", linewidth=0.9, linestyle=(0, (1, 1.5)), zorder=0.6)
    ax.plot(
        [layer], [value], linestyle="", marker="o", markersize=9, markerfacecolor="none", markeredgecolor="black",
        markeredgewidth=1.1, label=label,
    )  # fmt: skip
