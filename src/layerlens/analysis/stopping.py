"""When enough tokens of each sample are decoded: rounds of growing draws, judged by the intervals that are reported anyway.

The mean of a sample's drawn rows is the sample's mean plus an error of the draw, independent between samples. So the spread of
these means over samples, which the bootstrap resamples, includes both, and the interval widens with fewer rows as it should.
The part of that variance that comes from the draws alone is known too, since each draw is a simple random sample
(Cochran, Sampling Techniques, 1977, chapter 10): it says what decoding all other rows would gain.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from numbers import Integral
from typing import Literal

import numpy as np
import xarray as xr
from jaxtyping import Float

from layerlens.analysis.plan import Plan
from layerlens.errors import SelectionError
from layerlens.results import Run
from layerlens.selection import select_layer
from layerlens.selection.layer import FEW_PROBLEMS
from layerlens.storage.manifest import Stopping
from layerlens.types import MODULE_SITES, Rows

FIRST = 8
"""Response tokens of each sample in the first round; each round after it doubles them."""

STABLE_SHARE = 0.95
"""Share of resamples that must give the chosen layer for the goal to be reached."""

SMALL_GAIN = 0.1
"""Decoding all other rows counts as no help if it narrowed the widest interval by less than this share and missed the precision."""

Array = np.ndarray
Ending = Literal["layer", "precision", "all", "samples"]


def run_until_stopped(run_round: Callable[[int], Run | None], precision: float | None = None) -> tuple[Run, Stopping]:
    """Doubles the tokens per sample until the goal is reached or more of them cannot help.

    Args:
        run_round: gives the run with up to this many response tokens of each sample decoded; None if another round is known to
            follow.
        precision: the goal is that every 95% interval of mean entropy (at each layer and site) and of each module's mean ΔS has
            at most this half-width, nats. None: the goal is that `select_layer` gives one answer in 95% of resamples of 8 or more problems.

    Returns the run of the last round, and the verdict that ended it.
    """
    tokens = FIRST
    while (run := run_round(tokens)) is None or (verdict := stopping_verdict(run, precision)).ending is None:
        tokens *= 2
    return run, verdict


def stopping_verdict(run: Run, precision: float | None = None) -> Stopping:
    """Whether the decoded rows reach the goal; arguments as in `run_until_stopped`. A run always gives the same verdict."""
    rows: Rows = "reference" if run.data.attrs.get("rows") == "reference" else "response" if run.data["in_response"].values.any() else "all"
    choice = select_layer(run, rows=rows) if precision is None else None
    frequency = None if choice is None or math.isnan(choice.frequency) else choice.frequency
    now, then = _widest(run, precision, rows)
    weight = run.row_weights()
    size = (
        "one sample, no interval" if now is None or then is None else f"widest 95% interval ±{now:.2g} nats, ±{then:.2g} with every token"
    )
    ending: Ending | None = None
    enough = len(np.unique(run.problems)) >= FEW_PROBLEMS
    if choice is not None and frequency is not None and frequency >= STABLE_SHARE and enough:
        ending, reason = "layer", f"{f'layer {choice.layer}' if choice.layer else 'no layer'} in {frequency:.0%} of resamples"
    elif precision is not None and now is not None and now <= precision:
        ending, reason = "precision", f"widest 95% interval ±{now:.2g} nats, asked for ±{precision:g}"
    elif (weight == 1).all():
        ending, reason = "all", f"every token is decoded ({size})"
    elif now is not None and then is not None and then >= max((1 - SMALL_GAIN) * now, precision or 0):
        ending, reason = "samples", f"more tokens per sample cannot help, more samples would ({size})"
    else:
        reason = f"the goal is not reached, more tokens per sample may help ({size})"
    return Stopping(
        goal="layer" if precision is None else "precision",
        precision=precision,
        stable_share=STABLE_SHARE,
        small_gain=SMALL_GAIN,
        first=FIRST,
        ending=ending,
        tokens_per_sample=int(run.data.attrs["tokens_per_sample"]),
        rows_decoded=len(weight),
        rows=round(weight.sum()),
        half_width=now,
        half_width_of_all=then,
        layer=None if choice is None else choice.layer,
        frequency=frequency,
        reason=reason,
    )


def _widest(run: Run, precision: float | None, rows: Rows) -> tuple[float | None, float | None]:
    """Half-width of the widest interval among the goal's curves, now and if every row were decoded; None with one sample."""
    curves: list[tuple[str, dict[str, str]]] = [("entropy_change", {"module": "ffn"})]
    if precision is not None:
        curves = [("entropy", {}), ("entropy_change", {})]
        if not any(set(sites) <= set(run.sites) for sites in MODULE_SITES.values()):
            del curves[1]
    now, then = [], []
    for name, where in curves:
        mean = run.mean(name, rows=rows).sel(where)
        half = ((mean["high"] - mean["low"]) / 2).values.ravel()
        now.append(half)
        then.append(half * np.sqrt(1 - share_of_draws(run.values(name).sel(where), run, rows).ravel()))
    widths = np.concatenate(now)
    if np.isnan(widths).any():
        return None, None
    return float(widths.max()), float(np.concatenate(then)[widths.argmax()])


def share_of_draws(values: xr.DataArray, run: Run, rows: Rows) -> Float[Array, "*rest"]:
    """The share of the variance of the mean of sample means that comes from drawing rows, 0...1; `values` has `token` in front.

    The share is Σ (1 - n/N) s²/n / m² over Σ (ȳ - mean)² / m(m - 1), for m samples with n of N rows drawn, of mean ȳ and variance s².
    Numerator and denominator are unbiased.
    """
    keep = run.row_mask(rows)
    sample, weight = run.data["sample"].values[keep], run.row_weights()[keep]
    starts = np.flatnonzero(np.diff(sample, prepend=-1))
    drawn = np.diff([*starts, len(sample)])
    column = (-1, *[1] * (values.ndim - 1))
    data, n = values.values[keep].astype(np.float64), drawn.reshape(column)
    means = np.add.reduceat(data, starts) / n
    variance = np.add.reduceat((data - means.repeat(drawn, axis=0)) ** 2, starts) / np.maximum(n - 1, 1)
    left = 1 - (drawn / np.add.reduceat(weight, starts)).reshape(column)
    with np.errstate(invalid="ignore", divide="ignore"):
        share = (left * variance / n).mean(0) / means.var(0, ddof=1) if len(drawn) > 1 else np.full(means.shape[1:], np.nan)
    part: Array = np.clip(np.nan_to_num(share), 0, 1)
    return part


def resolve_draw(tokens: object, precision: float | None, plan: Plan, n_layers: int) -> int | Literal["auto"] | None:
    """`tokens_per_sample` of `analyze`, checked against what is measured. Raises SelectionError."""
    if precision is not None and tokens != "auto":
        raise SelectionError("precision= is what tokens_per_sample='auto' must reach; pass both")
    if tokens is None:
        return None
    if isinstance(tokens, Integral) and not isinstance(tokens, bool) and int(tokens) >= 1:
        return int(tokens)
    if tokens != "auto":
        raise SelectionError(f"tokens_per_sample must be 1 or more, 'auto' or None, got {tokens!r}")
    if precision is not None and not 0 < precision < math.inf:
        raise SelectionError(f"precision must be above 0 (nats), got {precision}")
    lacking = [] if "entropy" in plan.metrics else ["metric entropy"]
    if precision is None:
        lacking += [f"site {site}" for site in MODULE_SITES["ffn"] if site not in plan.sites]
        lacking += [] if len(plan.layers) == n_layers else [f"all {n_layers} layers"]
    if lacking:
        hint = "" if precision is not None else ", or name a precision= of the curves instead of the choice of a layer"
        raise SelectionError(f"tokens_per_sample='auto' needs what is not measured to decide when to stop: add {', '.join(lacking)}{hint}")
    return "auto"
