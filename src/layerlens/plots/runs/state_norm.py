"""How long the states are, and which tokens' are far longer than the others'."""

from __future__ import annotations

from typing import Unpack

import numpy as np
from matplotlib.axes import Axes

from layerlens.errors import SelectionError
from layerlens.metrics.curves import quantile_bands
from layerlens.plots.kit.axes import log_axis, open_frame, title_and_legend
from layerlens.plots.kit.caption import complete_axes, describe_runs, row_name
from layerlens.plots.kit.figure import new_figure, run_layout
from layerlens.plots.kit.labels import token_label
from layerlens.plots.kit.layer_axis import depth, depth_axis
from layerlens.plots.kit.run_data import BAND_ROWS, MeanOptions, of_samples
from layerlens.plots.kit.style import BLUE, VERMILLION, styled
from layerlens.results import Run

BANDS = {(0.05, 0.95): 0.16, (0.25, 0.75): 0.34}
"""Opacity of each band, by its quantiles."""
TOP = (0.5, 1.0)
"""The quantiles whose upper end is the largest value."""


@styled
def state_norm(run: Run, site: str = "resid_post", *, ax: Axes | None = None, **mean: Unpack[MeanOptions]) -> Axes:
    """The Euclidean norm of states by layer, on a logarithmic axis: how it is distributed over tokens, and its extremes.

    Bands hold the middle 50% and 90% of tokens without those at position 0, the line is their median, and dots are the longest state
    of them all (of a very long run: of samples spread evenly over it).
    Position 0, the attention sink of most models, has a line of its own: the median over samples. States far above the
    bands are massive activations (Sun et al. 2024); linear CKA over rows that include one shows that one alone.

    Args:
        run: what to draw.
        site: where hidden vectors are read.
        ax: axes to draw into; a new figure by default.
        mean: of these keyword arguments of `Run.mean`, `rows` and `drop_first` choose the tokens.

    Raises:
        SelectionError: the run was analysed without state_norm, or lacks the site, or has none of the rows asked for.
    """
    whole, run = run, run.thinned(BAND_ROWS)
    values = run.values("state_norm")
    if site not in run.sites:
        raise SelectionError(f"the run of {run.model} has no site {site!r}; it has {', '.join(run.sites)}")
    lengths = values.sel(site=site).transpose("token", "layer").values.astype(np.float64)
    rows, first = row_name(mean), run.data["position"].values == 0
    keep = run.row_mask(mean.get("rows", "response"), mean.get("drop_first", 0), mean.get("segment")) & ~first
    if not keep.any():
        raise SelectionError(f"the run of {run.model} has no {rows} but those at position 0")
    median, (*bands, top) = quantile_bands(lengths[keep], [*BANDS, TOP])

    target = ax or new_figure(float(np.clip(4.2 + 0.06 * len(run.layers), 4.6, 7)), 3.4).subplots()
    x = depth(run, relative=False)
    for ((low, high), alpha), edges in zip(BANDS.items(), bands, strict=True):
        target.fill_between(x, *edges, color=BLUE, alpha=alpha, linewidth=0, label=f"{high - low:.0%} of tokens")
    target.plot(x, median, color=BLUE, linewidth=1.8, label="median token")
    target.plot(x, top[1], color=BLUE, linestyle="", marker="^", markerfacecolor="white", label="longest state")
    tokens = f"{int(keep.sum())} {rows}{of_samples(run, whole) or f' of {run.n_samples} samples'}, without position 0"
    shows = ["states as they stand, whatever norm follows", tokens, _longest(run, lengths, keep, median)]
    if first.any():
        target.plot(x, quantile_bands(lengths[first], [])[0], color=VERMILLION, linestyle="--", marker="s", label="position 0")
    open_frame(target)
    log_axis(target)
    target.set_ylabel(f"norm of the state at {site}")
    run_layout(target)
    depth_axis(target, [run], relative=False)
    title_and_legend(target, f"{run.model} · {site}")
    complete_axes(target, describe_runs(run, shows=shows), given=ax)
    return target


def _longest(run: Run, lengths: np.ndarray, keep: np.ndarray, median: np.ndarray) -> str:
    """The token whose state is longest against the median of its layer, in words."""
    shares = np.where(keep[:, None], lengths, 0.0) / median
    row, layer = np.unravel_index(shares.argmax(), shares.shape)
    token = token_label(str(run.data["token_text"].values[row]))
    return f"at most {shares[row, layer]:.3g} times the median: token {token}, layer {run.layers[layer]}"
