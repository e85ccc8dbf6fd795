"""How late models settle on their final policy, on relative depth."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Unpack

import numpy as np
from jaxtyping import Float
from matplotlib.axes import Axes

from layerlens.errors import SelectionError
from layerlens.metrics.envelope import LATE, SETTLED, late_share, settle_depth, upper_envelope
from layerlens.metrics.intervals import LEVEL
from layerlens.plots.kit.axes import legend_above, open_frame
from layerlens.plots.kit.caption import add_caption, describe_runs
from layerlens.plots.kit.curves import draw_band
from layerlens.plots.kit.figure import new_figure
from layerlens.plots.kit.layer_axis import depth_axis
from layerlens.plots.kit.run_data import MeanOptions, as_runs, legend_names
from layerlens.plots.kit.style import LineStyle, line_style, styled
from layerlens.results import Run
from layerlens.selection.curves import Curves, read_curves
from layerlens.types import METRIC_BOUNDS

Array = np.ndarray

PANELS = {"kl": "KL to the final policy", "disagreement": "disagreement with the final policy"}


@styled
def convergence(runs: Run | Sequence[Run], **mean: Unpack[MeanOptions]) -> np.ndarray:
    """Two axes on relative depth: KL to the final policy, and the share of tokens on which the most likely tokens differ.

    Both are of the residual stream, the embedding (depth 0) included, as shares of the largest value M(0), with their intervals.
    The thin line is the upper envelope M: the largest value still to come. The ring is the late share, M at relative depth 0.9;
    the triangle the settle depth, from which M stays under a tenth of its start; each with its interval.

    Args:
        runs: one run or several, of norm final and of models of any depth, with all layers and the sites resid_pre and resid_post.
        mean: keyword arguments of `Run.mean`.

    Returns:
        An array of the two Axes.

    Raises:
        SelectionError: a run of another norm, or one that lacks layers, sites or metrics.
    """
    runs = as_runs(runs)
    level = mean.pop("level", LEVEL)
    for run in runs:
        if run.norm != "final":
            raise SelectionError(
                f"how late a model settles is read with norm final, and the run of {run.model} has norm {run.norm}: "
                "layerlens analyze MODEL PROMPTS --norm final --out RUN"
            )
    curves = [read_curves(run, **mean) for run in runs]
    for run, each in zip(runs, curves, strict=True):
        if each.kl is None or each.disagreement is None:
            raise SelectionError(f"the run of {run.model} lacks kl_to_final or agrees at resid_pre and resid_post: analyse it with them")
    figure = new_figure(8.2, 3.6 + 0.1 * len(runs))
    axes: np.ndarray = np.array(figure.subplots(1, 2), dtype=object)
    for ax, (name, title) in zip(axes, PANELS.items(), strict=True):
        for number, (each, label) in enumerate(zip(curves, legend_names(runs), strict=True)):
            _draw(ax, each, name, level, line_style(number), label if len(runs) > 1 else "")
        ax.axvline(LATE, color="0.6", linewidth=0.7, linestyle=":", zorder=0)
        ax.axhline(SETTLED, color="0.6", linewidth=0.7, linestyle=":", zorder=0)
        open_frame(ax)
        depth_axis(ax, runs, relative=True)
        ax.set_ylim(bottom=0)
        ax.set_ylabel("mean, share of its maximum")
        ax.set_title(title)
    legend_above(axes[0])
    options = {"over": "sample", "rows": "response", "drop_first": 0, **mean}
    attrs = [{**options, "samples": each.samples, "problems": each.problems, "level": level} for each in curves]
    shows = ["thin: upper envelope", f"ring: left at {LATE:.0%} of the depth", f"triangle: from here under {SETTLED:.0%}"]
    shows.append("depth 0: the embedding")
    add_caption(figure, describe_runs(runs, attrs, shows=shows))
    return axes


def _draw(ax: Axes, curves: Curves, name: str, level: float, style: LineStyle, label: str) -> None:
    distance: Float[Array, "curves depths"] = getattr(curves, name)
    bounds = METRIC_BOUNDS["kl_to_final" if name == "kl" else "agrees"]
    x = np.arange(distance.shape[-1]) / curves.n_layers
    start = distance[0].max()
    if not start > 0:
        return
    low, high = (end / start for end in curves.interval(distance, level, bounds=bounds))
    draw_band(ax, x, low, high, style.color)
    ax.plot(x, distance[0] / start, color=style.color, linestyle=style.linestyle, label=label)
    ax.plot(x, upper_envelope(distance[0]) / start, color=style.color, linewidth=0.6, label="_envelope")
    late, settled = late_share(distance), settle_depth(distance)
    for place, values, marker in (((LATE, late[0]), late, "o"), ((settled[0], SETTLED), settled, "^")):
        ends = [[float(end)] for end in curves.interval(values, level, bounds=(0.0, 1.0))]
        if np.isfinite(ends).all():
            line = ([LATE, LATE], [ends[0][0], ends[1][0]]) if marker == "o" else ([ends[0][0], ends[1][0]], [SETTLED, SETTLED])
            ax.plot(*line, color=style.color, linewidth=2.5, alpha=0.5, label="_interval")
        ax.plot(
            *place, marker=marker, markersize=6, markerfacecolor="white", markeredgecolor=style.color, markeredgewidth=1.2, label="_mark"
        )
