"""In which direction modules write: the cosine between what they add to the residual stream and the stream itself."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Unpack

import numpy as np
from matplotlib.axes import Axes

from layerlens.errors import SelectionError
from layerlens.metrics.curves import quantile_bands
from layerlens.plots.kit.axes import open_frame, set_title
from layerlens.plots.kit.caption import complete_axes, describe_runs, row_name
from layerlens.plots.kit.figure import new_figure, run_layout
from layerlens.plots.kit.layer_axis import depth, depth_axis
from layerlens.plots.kit.run_data import BAND_ROWS, MeanOptions, of_samples
from layerlens.plots.kit.style import MODULE_NAMES, MODULE_STYLES, styled
from layerlens.results import Run

BANDS = {(0.05, 0.95): 0.16, (0.25, 0.75): 0.34}
"""Opacity of each band, by its quantiles."""

STREAMS = {"attn": "cos(attn_out, resid_pre)", "ffn": "cos(ffn_out, resid_mid)"}
"""What is drawn of each module, for the axis."""
EFFECTS = ((1.0, "amplifies"), (0.0, "writes new\ndirections"), (-1.0, "erases"))
"""What a module with a cosine of 1, 0 and −1 does to the stream."""


@styled
def stream_cosine(run: Run, module: str | Sequence[str] | None = None, **mean: Unpack[MeanOptions]) -> np.ndarray:
    """How the cosine between a module's output and the stream it writes to is distributed over tokens, by layer.

    Bands hold the middle 50% and 90% of response tokens (of a very long run: of samples
    spread evenly over it), the line is their median; the points are the mean over the run
    with its bootstrap interval.

    Args:
        run: what to draw.
        module: `attn`, `ffn` or both; all that the run has by default.
        mean: keyword arguments of `Run.mean`; `rows` chooses the tokens of the distribution as well.

    Returns:
        An array of Axes, one per module.

    Raises:
        SelectionError: the run was analysed without stream_cosine, or lacks the module, or has none of the rows asked for.
    """
    shown = run.thinned(BAND_ROWS)
    values = shown.values("stream_cosine")
    there = [str(name) for name in values["module"].values]
    names = there if module is None else [module] if isinstance(module, str) else list(module)
    lacking = [name for name in names if name not in there]
    if lacking or not names:
        raise SelectionError(
            f"the run of {run.model} has no stream_cosine of {', '.join(lacking) or 'any module'}; it has {', '.join(there) or 'none'}"
        )
    means = run.mean("stream_cosine", **mean)
    values = values.isel(token=shown.row_mask(mean.get("rows", "response"), mean.get("drop_first", 0), mean.get("segment")))

    width = float(np.clip(4.0 + 0.07 * len(run.layers), 4.8, 7))
    figure = new_figure(width, 0.8 + 2.0 * len(names))
    axes: np.ndarray = figure.subplots(len(names), 1, sharex=True, sharey=True, squeeze=False)[:, 0]
    x = depth(run, relative=False)
    for ax, name in zip(axes, names, strict=True):
        color = MODULE_STYLES[name].color
        median, bands = quantile_bands(values.sel(module=name).transpose("token", "layer").values.astype(np.float64), list(BANDS))
        known = np.isfinite(median)
        for ((low, high), alpha), edges in zip(BANDS.items(), bands, strict=True):
            ax.fill_between(x[known], *edges[:, known], color=color, alpha=alpha, linewidth=0, label=f"{high - low:.0%} of tokens")
        ax.plot(x[known], median[known], color=color, linewidth=1.8, label="median token")
        middle, lower, upper = (means[key].sel(module=name).values for key in ("mean", "low", "high"))
        spread = np.nan_to_num(np.stack([middle - lower, upper - middle]).clip(0))
        ax.errorbar(
            x, middle, spread, linestyle="", color="black", marker="D", markersize=2.8, markerfacecolor="white", elinewidth=0.9,
            markeredgewidth=0.8, label="mean",
        )  # fmt: skip
        ax.axhline(0, color="0.3", linewidth=0.8, zorder=0.5)
        open_frame(ax)
        ax.set_ylabel(f"{MODULE_NAMES[name]}\n{STREAMS[name]}")
    _label_directions(axes, run)
    handles, labels = axes[0].get_legend_handles_labels()
    axes[0].legend(handles, labels, loc="lower left", bbox_to_anchor=(0, 1.0), ncols=4, borderaxespad=0.3, borderpad=0.2)
    set_title(axes[0], run.model, pad=20.0)
    shows = f"bands and median: {values.sizes['token']} {row_name(mean)}{of_samples(shown, run)}; points: mean over the run"
    complete_axes(axes, describe_runs(run, means.attrs, shows=[shows]))
    return axes


def _label_directions(axes: Sequence[Axes] | np.ndarray, run: Run) -> None:
    """Makes the common y axis reach to both sides of zero, and writes at the right edge what each direction means."""
    low, high = axes[0].get_ylim()
    reach = max(abs(low), abs(high), 0.05)
    axes[0].set_ylim(max(-1.02, min(low, -0.55 * reach)), min(1.02, max(high, 0.55 * reach)))
    low, high = axes[0].get_ylim()
    run_layout(axes[0])
    for ax in axes:
        for side, text in EFFECTS:
            y = 0.0 if side == 0 else (0.62 * high if side > 0 else 0.62 * low)
            arrow = {1.0: "▲ ", 0.0: "", -1.0: "▼ "}[side]
            place: dict[str, Any] = {"transform": ax.get_yaxis_transform(), "ha": "left", "va": "center"}
            ax.text(1.015, y, arrow + text, fontsize=6.5, color="0.3", linespacing=1.1, **place)
        depth_axis(ax, [run], relative=False)
        ax.label_outer()
