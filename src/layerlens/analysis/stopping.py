"""When enough tokens of each sample are decoded: rounds of growing draws, judged by the interval that is reported anyway.

The mean of a sample's drawn rows is its own mean plus an error of the draw, independent between samples. So the spread of these
means over samples, which the bootstrap resamples, holds both, and the interval widens with fewer rows as it should.
How much of that variance comes from the draws alone is known as well, since each is a simple random sample
(Cochran, Sampling Techniques, 1977, chapter 10): it says what decoding all the rest would gain.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from numbers import Integral
from typing import Any, Literal

import numpy as np
import xarray as xr
from jaxtyping import Float

from layerlens.analysis.plan import Plan
from layerlens.errors import SelectionError
from layerlens.results import Run
from layerlens.selection.layer import select_layer
from layerlens.types import MODULE_SITES, Rows

FIRST = 8
"""Response tokens of each sample in the first round; each round after it doubles them."""

SURE = 0.95
"""Share of resamples that must give the chosen layer for it to be settled."""

SMALL_GAIN = 0.1
"""Decoding all the rest can not help where it would take less than this share off the widest interval, and not reach the precision."""

Array = np.ndarray
Ending = Literal["layer", "precision", "all", "samples"]


@dataclass(frozen=True)
class Verdict:
    """Whether to stop after a round, and why.

    Attributes:
        ending: "layer" or "precision", the goal that is reached; "all", every row is decoded; "samples", the spread between samples
            dominates; None, another round would help.
        tokens_per_sample: up to how many response tokens of each sample are decoded.
        rows_decoded, rows: of all samples together.
        half_width: of the widest 95% interval among the curves that matter to the goal, nats; None with one sample.
        half_width_of_all: what it would be with every row decoded, estimated; None with one sample.
        layer, frequency: the choice and its bootstrap frequency, where the goal is a layer.
        reason: the verdict in a sentence.
    """

    ending: Ending | None
    tokens_per_sample: int
    rows_decoded: int
    rows: int
    half_width: float | None
    half_width_of_all: float | None
    layer: int | None
    frequency: float | None
    reason: str


def until_stopped(look: Callable[[int], Run | None], precision: float | None = None) -> tuple[Run, dict[str, Any]]:
    """Doubles the tokens per sample until the goal is reached or more of them can not help.

    Args:
        look: gives the run with up to so many response tokens of each sample decoded; None where it is known already that another
            round follows.
        precision: the goal is a half-width of at most so many nats, of the 95% interval of mean entropy at every layer and site and of
            every module's mean ΔS. None: it is the layer that `select_layer` chooses, in 95% of resamples.

    Returns the run of the last round, and what is to be kept of the decision (plain values).
    """
    tokens = FIRST
    while (run := look(tokens)) is None or (verdict := stopping_verdict(run, precision)).ending is None:
        tokens *= 2
    rule = {"goal": "layer" if precision is None else "precision", "precision": precision, "sure": SURE, "small_gain": SMALL_GAIN}
    return run, {**rule, "first": FIRST, **asdict(verdict)}


def stopping_verdict(run: Run, precision: float | None = None) -> Verdict:
    """Whether the rows that are decoded settle the goal; arguments as in `until_stopped`. The same run gives the same verdict."""
    rows: Rows = "response" if run.data["in_response"].values.any() else "all"
    choice = select_layer(run, rows=rows) if precision is None else None
    sure = None if choice is None or math.isnan(choice.frequency) else choice.frequency
    now, then = _widest(run, precision, rows)
    weight = run.row_weights()
    size = (
        "one sample, no interval" if now is None or then is None else f"widest 95% interval ±{now:.2g} nats, ±{then:.2g} with every token"
    )
    ending: Ending | None = None
    if choice is not None and sure is not None and sure >= SURE:
        ending, reason = "layer", f"{f'layer {choice.layer}' if choice.layer else 'no layer'} in {sure:.0%} of resamples"
    elif precision is not None and now is not None and now <= precision:
        ending, reason = "precision", f"widest 95% interval ±{now:.2g} nats, asked for ±{precision:g}"
    elif (weight == 1).all():
        ending, reason = "all", f"every token is decoded ({size})"
    elif now is not None and then is not None and then >= max((1 - SMALL_GAIN) * now, precision or 0):
        ending, reason = "samples", f"more tokens per sample can not help, more samples would ({size})"
    else:
        reason = f"not settled yet ({size})"
    return Verdict(
        ending=ending,
        tokens_per_sample=int(run.data.attrs["tokens_per_sample"]),
        rows_decoded=len(weight),
        rows=round(weight.sum()),
        half_width=now,
        half_width_of_all=then,
        layer=None if choice is None else choice.layer,
        frequency=sure,
        reason=reason,
    )


def _widest(run: Run, precision: float | None, rows: Rows) -> tuple[float | None, float | None]:
    """Half-width of the widest interval among the goal's curves, and what it would be with every row decoded; None with one sample."""
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
    """Which part of the variance of the mean of sample means comes from drawing rows, 0...1; `values` has `token` in front.

    It is Σ (1 - n/N) s²/n / m² over Σ (ȳ - mean)² / m(m - 1), for m samples with n of N rows drawn, of mean ȳ and variance s².
    Both are unbiased.
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
        raise SelectionError(f"tokens_per_sample='auto' judges by what is not measured: add {', '.join(lacking)}{hint}")
    return "auto"
