"""At which layers tokens settle: what is thought and what is answered, right responses and wrong ones."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Unpack

import numpy as np
from matplotlib.axes import Axes

from layerlens.plots.kit.axes import open_frame, title_and_legend
from layerlens.plots.kit.caption import complete_axes, describe_runs
from layerlens.plots.kit.curves import draw_curve
from layerlens.plots.kit.figure import new_figure, run_layout
from layerlens.plots.kit.layer_axis import depth, depth_axis
from layerlens.plots.kit.run_data import MeanOptions
from layerlens.plots.kit.style import line_style, styled
from layerlens.results import Run
from layerlens.results.settling import settling_shares


@styled
def settling_depths(
    run: Run, correct: Sequence[bool] | np.ndarray | None = None, *, ax: Axes | None = None, **mean: Unpack[MeanOptions]
) -> Axes:
    """The share of tokens that settle at each layer, a line for each segment, or for right and wrong responses, with intervals.

    Args:
        run: what to draw; it needs `js_to_final` of all layers.
        correct: whether each sample's response is right, as `Run.correct` gives it; None draws segments.
        ax: axes to draw into; a new figure by default.
        mean: keyword arguments of `Run.mean`.

    Raises:
        SelectionError: the run was analysed without js_to_final or without all layers, or `correct` does not fit its samples.
    """
    shares = settling_shares(run, None if correct is None else np.asarray(correct, bool), **mean)
    target = ax or new_figure(float(np.clip(4.2 + 0.06 * run.n_layers, 4.6, 7)), 3.3).subplots()
    groups = [str(name) for name in shares["group"].values]
    for number, name in enumerate(groups):
        nowhere = float(shares["unsettled"].sel(group=name))
        label = name if nowhere < 5e-4 else f"{name} ({nowhere:.1%} settle nowhere)"
        draw_curve(target, depth(run, relative=False), shares.sel(group=name), line_style(number), label, markers=48)
    target.set_ylabel("share of tokens that settle at the layer")
    target.set_ylim(bottom=0)
    open_frame(target)
    run_layout(target)
    depth_axis(target, [run], relative=False)
    title_and_legend(target, run.model)
    threshold = run.values("settling_depth").attrs["threshold"]
    shows = f"settling: resid_post comes within {threshold:g} bits of the final policy (Jensen-Shannon) for the first time"
    complete_axes(target, describe_runs(run, shares.attrs, shows=[shows]), given=ax)
    return target
