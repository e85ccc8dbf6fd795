"""What each layer contributes to the gain of training, above the curves of the model before training."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Unpack

import numpy as np
import pandas as pd
import xarray as xr
from matplotlib.axes import Axes

from layerlens.errors import SelectionError
from layerlens.plots.kit.axes import open_frame, title_and_legend
from layerlens.plots.kit.caption import caption_text, complete_axes, describe_runs
from layerlens.plots.kit.curves import draw_curve
from layerlens.plots.kit.figure import new_figure, run_layout
from layerlens.plots.kit.labels import plain
from layerlens.plots.kit.layer_axis import depth, number_axis
from layerlens.plots.kit.run_data import MeanOptions, mean_at
from layerlens.plots.kit.style import line_style, styled
from layerlens.results import Run
from layerlens.results.contribution import LayerContribution
from layerlens.results.settling import settling_shares

Curve = Callable[[Run, MeanOptions], xr.Dataset]


def _all_settling(run: Run, options: MeanOptions) -> xr.Dataset:
    shares = settling_shares(run, np.ones(run.n_samples, bool), **options)
    return shares.sel(group="right")


CURVES: Mapping[str, Curve] = {
    "mean entropy [nats]": lambda run, options: mean_at(run.mean("entropy", **options), "resid_post", run),
    "mean FFN ΔS [nats]": lambda run, options: mean_at(run.mean("entropy_change", **options), "ffn", run),
    "share of tokens\nthat settle": _all_settling,
    "mean JS to the\nfinal policy [bits]": lambda run, options: mean_at(run.mean("js_to_final", **options), "resid_post", run),
}
"""Label of a panel below the contributions -> the mean by layer that it shows, if the run holds what it is made of."""


@styled
def layer_contribution(found: LayerContribution, run: Run | None = None, **mean: Unpack[MeanOptions]) -> np.ndarray:
    """C(k) of each layer with its intervals and, of a run of the model before training, the curves below it with rank correlations.

    Bars are the intervals for other problems like these, thin lines those for other seeds of training. Without an interval of C(k)
    (the gain of all layers is not told from 0) the gain in accuracy is drawn in its place. Each curve's panel says Spearman's rank
    correlation ρ of the layers' gains with the curve, its interval for other problems, and p: how often chance would order the layers so.

    Args:
        found: from `layerlens.layer_contribution`; sets of several layers are left out.
        run: of the same model, with all layers.
        mean: keyword arguments of `Run.mean`.

    Returns:
        An array of Axes, the contributions first.

    Raises:
        SelectionError: no single layer was trained alone, or the run has other layers.
    """
    table = found.table[found.table["layer"].notna()]
    if table.empty:
        raise SelectionError("no single layer was trained alone: there is nothing to draw by layer")
    layers = table["layer"].to_numpy().astype(int)
    if run is not None and not set(layers.tolist()) <= set(run.layers):
        raise SelectionError(f"the run has layers {run.layers[0]} to {run.layers[-1]}, and layer {max(layers)} was trained")
    curves = {} if run is None else {label: curve for label, make in CURVES.items() if (curve := _try(make, run, mean)) is not None}
    figure = new_figure(float(np.clip(4.2 + 0.09 * max(layers), 4.8, 8)), 2.9 + 1.25 * len(curves))
    axes: np.ndarray = figure.subplots(1 + len(curves), 1, sharex=True, squeeze=False, height_ratios=[1.7, *[1] * len(curves)])[:, 0]
    shares = bool(table["contribution_low"].notna().any())
    _draw_bars(axes[0], layers, table, shares, 1.0 if shares else 100 * float(found.full["gain"]))
    correlated = False
    for number, (ax, (label, curve)) in enumerate(zip(axes[1:], curves.items(), strict=True), 1):
        assert run is not None
        draw_curve(ax, depth(run, relative=False), curve, line_style(number), "", markers=48)
        ax.set_ylabel(label)
        correlated |= _tell_correlation(ax, found, dict(zip(run.layers, curve["mean"].values.tolist(), strict=True)))
        open_frame(ax)
    run_layout(axes[0])
    last = max(layers) if run is None else run.n_layers
    axes[-1].set_xlim(0.4, last + 0.6)
    number_axis(axes[-1].xaxis, list(range(1, last + 1)), figure.get_figwidth() - 1, apart=0.22)
    title_and_legend(axes[0], f"{plain(found.model)} · {found.task}")
    text = caption_text(
        "GRPO on one layer alone, against all layers at equal steps"
        if shares
        else "the gain of all layers is not told from 0: gains in place of C(k)",
        found.learning_rates(),
        f"{found.full['problems']} problems, {found.full['seeds']} seed(s)",
        f"bars: {100 * found.level:g}% bootstrap interval over problems, paired; thin: over seeds",
        "ρ: Spearman's with the gains, and its interval over problems; p: share of orders of the layers with as large a ρ"
        if correlated
        else "",
        "" if run is None else "below: " + describe_runs(run, curves[next(iter(curves))].attrs if curves else ()),
    )
    complete_axes(axes, text)
    return axes


def _try(make: Curve, run: Run, options: MeanOptions) -> xr.Dataset | None:
    try:
        return make(run, options)
    except SelectionError:  # the run was analysed without it
        return None


def _draw_bars(ax: Axes, layers: np.ndarray, table: pd.DataFrame, shares: bool, whole: float) -> None:
    name = "contribution" if shares else "gain"
    prefix = "contribution_" if shares else ""
    unit = 1.0 if shares else 100.0
    style = line_style(0)
    values = {
        key: unit * table[key].to_numpy(np.float64)
        for key in (name, *(f"{prefix}{end}" for end in ("low", "high", "seeds_low", "seeds_high")))
    }
    ax.vlines(layers, values[f"{prefix}seeds_low"], values[f"{prefix}seeds_high"], color="0.45", linewidth=1.0, label="over seeds")
    ax.vlines(layers, values[f"{prefix}low"], values[f"{prefix}high"], color=style.color, linewidth=3.2, alpha=0.55, label="over problems")
    ax.plot(layers, values[name], linestyle="", marker="o", color=style.color, markersize=4)
    ax.axhline(0, color="0.4", linewidth=0.7, zorder=0)
    ax.axhline(whole, color="0.4", linewidth=0.7, linestyle=(0, (4, 2)), zorder=0, label="all layers together")
    ax.set_ylabel("contribution C(k)" if shares else "gain in accuracy [points]")
    open_frame(ax)


def _tell_correlation(ax: Axes, found: LayerContribution, values: Mapping[int, float]) -> bool:
    """Whether there is a correlation to tell."""
    try:
        rho, low, high = found.rank_correlation(values)
    except SelectionError:  # too few layers
        return False
    if np.isnan(rho):
        return False
    ends = "" if np.isnan(low) else f" ({low:.2f} to {high:.2f})"
    ends += f", p {found.chance(values):.2g}"
    place: dict[str, Any] = {"xytext": (-2, 2), "textcoords": "offset points", "ha": "right", "va": "bottom"}
    ax.annotate(f"ρ = {rho:.2f}{ends}", (1, 1), xycoords="axes fraction", **place)
    return True
