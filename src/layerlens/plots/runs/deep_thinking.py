"""Whether responses whose tokens settle in deep layers are right more often."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes

from layerlens.plots.kit.axes import open_frame, title_and_legend
from layerlens.plots.kit.caption import complete_axes, describe_runs
from layerlens.plots.kit.figure import new_figure, run_layout
from layerlens.plots.kit.style import BLUE, VERMILLION, styled
from layerlens.results import Run
from layerlens.results.settling import accuracy_by_ratio
from layerlens.types import Segment

EDGE = 0.045
"""Where the marks of single responses lie, beyond 0 and 1."""


@styled
def deep_thinking(
    run: Run,
    correct: Sequence[bool] | np.ndarray,
    segment: Segment | None = None,
    *,
    seed: int = 0,
    ax: Axes | None = None,
) -> Axes:
    """The share of right responses over their deep-thinking ratio, in bins of equally many responses, with intervals over problems.

    Every response has a mark at the upper edge if it is right, else at the lower one.

    Args:
        run: what to draw; it needs `js_to_final` of all layers.
        correct: whether each sample's response is right, as `Run.correct` gives it.
        segment: the ratio of this segment's tokens; of the whole response by default.
        seed: of the bootstrap.
        ax: axes to draw into; a new figure by default.

    Raises:
        SelectionError: the run was analysed without js_to_final or without all layers, `correct` does not fit its samples, or no
            response has a row of the segment.
    """
    found = accuracy_by_ratio(run, np.asarray(correct, bool), segment=segment, seed=seed)
    target = ax or new_figure(4.6, 3.4).subplots()
    ratio, right = found["response_ratio"].values, found["right"].values
    for side, y, color, marker in ((right, 1 + EDGE, BLUE, "|"), (~right, -EDGE, VERMILLION, "|")):
        target.plot(ratio[side], np.full(side.sum(), y), linestyle="", marker=marker, markersize=7, color=color, alpha=0.6)
    middle, low, high = (found[name].values for name in ("mean", "low", "high"))
    spread = np.nan_to_num(np.stack([middle - low, high - middle]).clip(0))
    style: dict[str, Any] = {"color": "black", "marker": "o", "markersize": 4.5, "elinewidth": 1.0, "capsize": 2.5, "linewidth": 1.0}
    target.errorbar(found["ratio"].values, middle, spread, label="right, by bin of equally many responses", **style)
    target.set(xlabel="deep-thinking ratio of the response", ylabel="share of right responses", ylim=(-2 * EDGE, 1 + 2 * EDGE))
    open_frame(target)
    run_layout(target)
    title_and_legend(target, run.model)
    attrs = run.values("deep_thinking_ratio").attrs
    r, r_low, r_high = (float(found[name]) for name in ("correlation", "correlation_low", "correlation_high"))
    told = "ratio or correctness does not vary" if np.isnan(r) else f"correlation r = {r:.2f}"
    told += f" ({r_low:.2f} to {r_high:.2f})" if np.isfinite(r_low) else ""
    deep = f"deep: within {attrs['threshold']:g} bits of the final policy not before l / L = {attrs['share']:g}"
    marks = "marks: single responses, right above and wrong below"
    complete_axes(target, describe_runs(run, found.attrs, shows=[told, deep, marks]), given=ax)
    return target
