"""ΔS of a module under norm none, and its parts of shape and scale."""

from __future__ import annotations

from typing import Unpack

import numpy as np
from matplotlib.axes import Axes

from layerlens.errors import SelectionError
from layerlens.plots.kit.axes import open_frame, title_and_legend
from layerlens.plots.kit.caption import complete_axes, describe_runs
from layerlens.plots.kit.curves import draw_curve
from layerlens.plots.kit.figure import new_figure, run_layout
from layerlens.plots.kit.layer_axis import depth, depth_axis
from layerlens.plots.kit.run_data import MeanOptions
from layerlens.plots.kit.style import MODULE_NAMES, line_style, styled
from layerlens.results import Run
from layerlens.results import scale_shape as parts_of_change

NAMES = {"change": "ΔS under norm none", "shape": "part of shape (ΔS under norm matched)", "scale": "part of scale (the rest)"}


@styled
def scale_shape(run: Run, matched: Run, module: str = "ffn", *, ax: Axes | None = None, **mean: Unpack[MeanOptions]) -> Axes:
    """Mean ΔS of a module under norm none by layer, nats, and the two parts that it is the sum of, with bootstrap intervals.

    The numbers are those of `layerlens.scale_shape`; the caption gives the rank correlation of entropy with the spread of the logits.

    Args:
        run, matched: runs of the same model, tokens and layers, with norm "none" and norm "matched".
        module: `ffn`, `attn` or `layer`.
        ax: axes to draw into; a new figure by default.
        mean: keyword arguments of `Run.mean`.

    Raises:
        SelectionError: the runs have other norms, or differ in weights, layers or tokens, or they lack the module's sites.
    """
    parts = parts_of_change(run, matched, **mean)
    if module not in parts["module"].values:
        raise SelectionError(f"no module {module!r} in both runs; they have {', '.join(map(str, parts['module'].values))}")
    parts = parts.sel(module=module)
    target = ax or new_figure(float(np.clip(4.2 + 0.09 * len(run.layers), 4.8, 8)), 3.4).subplots()
    for number, (part, name) in enumerate(NAMES.items()):
        draw_curve(target, depth(run, relative=False), parts.sel(part=part), line_style(number), name, markers=48)
    target.axhline(0, color="0.3", linewidth=0.8, zorder=0.5)
    target.set_ylabel("mean ΔS = S(out) − S(in) [nats]")
    open_frame(target)
    run_layout(target)
    depth_axis(target, [run], relative=False)
    title_and_legend(target, f"{run.model} · {MODULE_NAMES[module]}")
    correlation = float(parts["rank_correlation"])
    known = "" if np.isnan(correlation) else f"rank correlation of entropy with the logits' spread: {correlation:.2f}"
    complete_axes(target, describe_runs([run, matched], parts.attrs, shows=[known]), given=ax)
    return target
