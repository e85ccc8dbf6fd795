"""Exploration, integration, convergence: the phases of a module's entropy change over layers.

The phases are those of Bottom-up Policy Optimization (arXiv 2512.19673); the rule that finds them is this project's.
A mean ΔS counts as zero within a tolerance, a share of the early rise, so near-zero layers of either sign are integration.
Exploration begins at the first layer whose ΔS is above zero, which must be among the lower layers. From there on, the phases are
the best-fitting cut of the layers into three runs (any of which may be empty): the cost of a layer is the distance of its ΔS from
the range of its phase. The mean over all samples and its resamples are cut by this one rule: the resamples carry the error.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int

Array = np.ndarray
Span = tuple[int, int]


class PhaseEnds(NamedTuple):
    """The ends of the phases of each curve, in layers counted from 1; an empty phase ends with the phase before it."""

    exploration_start: Int[Array, "*curves"]
    """0 if ΔS is above zero in none of the lower layers."""
    exploration_end: Int[Array, "*curves"]
    integration_end: Int[Array, "*curves"]
    misfit: Float[Array, "*curves"]
    """Cost of the cut as a share of Σ |ΔS|: 0 if every layer lies in the range of its phase; NaN if every ΔS is 0."""


@dataclass(frozen=True)
class PhaseRule:
    """How phases are found: what counts as zero, and how low exploration must begin.

    Attributes:
        tolerance: share of the early rise below which a mean ΔS counts as zero. The early rise is the largest mean ΔS in the
            lower half of the layers, or the largest |ΔS| if no ΔS is above zero there.
        entry: share of the layers, from the bottom, among which exploration must begin. A layer below its beginning (the
            first layer of a small model may lower entropy) belongs to no phase.
    """

    tolerance: float = 0.1
    entry: float = 0.25

    def find(self, change: Float[Array, "*curves layers"]) -> PhaseEnds:
        """The phases of each curve of mean ΔS over layers, nats."""
        return find_phases(change, self.zero_band(change), math.ceil(self.entry * change.shape[-1]))

    def zero_band(self, change: Float[Array, "*curves layers"]) -> Float[Array, "*curves 1"]:
        """The |ΔS| up to which a layer of each curve counts as zero, nats."""
        lower_half = change[..., : (change.shape[-1] + 1) // 2]
        rise = lower_half.max(-1, keepdims=True)
        band: Array = self.tolerance * np.where(rise > 0, rise, np.abs(change).max(-1, keepdims=True))
        return band


def find_phases(change: Float[Array, "*curves layers"], zero: Float[Array, "*curves #layers"], entry: int) -> PhaseEnds:
    """The best-fitting cut of each curve.

    Args:
        change: mean ΔS of the FFN at layers 1...L.
        zero: the |ΔS| up to which each layer counts as zero.
        entry: the last layer at which exploration may begin.
    """
    n_layers = change.shape[-1]
    layer = np.arange(1, n_layers + 1)
    rises = (change > zero) & (layer <= entry)
    start = np.where(rises.any(-1), rises.argmax(-1) + 1, 0)
    costs = np.stack([np.maximum(0, zero - change), np.maximum(0, np.abs(change) - zero), np.maximum(0, change + zero)])
    costs = np.where(layer < start[..., None], 0.0, costs)
    costs[0] += np.where(start[..., None] == 0, 1 + np.nansum(costs), 0.0)  # dearer than any cut: no exploration
    before = np.concatenate([np.zeros((3, *change.shape[:-1], 1)), costs.cumsum(-1)], axis=-1)
    explore, integrate, converge = before
    # cost of ending exploration after b1 layers and integration after b2 >= b1
    total = (explore - integrate)[..., :, None] + (integrate - converge)[..., None, :] + converge[..., -1][..., None, None]
    cut = np.arange(n_layers + 1)
    # the layer at which exploration begins costs nothing in it, however little it rises, so exploration never ends before
    possible = (cut[:, None] <= cut[None, :]) & (cut[:, None] >= start[..., None, None])
    # rounding of the sums must not decide between equal cuts: the earliest wins
    flat = np.where(possible, np.round(total, 9), np.inf).reshape(*change.shape[:-1], -1)
    best = flat.argmin(-1)
    explored, integrated = best // (n_layers + 1), best % (n_layers + 1)
    phase = (layer > explored[..., None]).astype(np.int64) + (layer > integrated[..., None])
    cost = np.take_along_axis(costs, phase[None], axis=0)[0].sum(-1)
    with np.errstate(invalid="ignore"):
        return PhaseEnds(start, explored, integrated, cost / np.abs(change).sum(-1))


def phase_spans(ends: PhaseEnds, n_layers: int) -> dict[str, Span | None]:
    """First and last layer of each phase of the first curve, None for an empty phase."""
    start, explored, integrated = (int(end.flat[0]) for end in ends[:3])
    spans = {"exploration": (start, explored), "integration": (explored + 1, integrated), "convergence": (integrated + 1, n_layers)}
    return {name: span if 0 < span[0] <= span[1] else None for name, span in spans.items()}


def exploration_rise(change: Float[Array, "*curves layers"], ends: PhaseEnds) -> Float[Array, "*curves"]:
    """Mean ΔS over the layers of each curve's exploration, nats; NaN without one."""
    layer = np.arange(1, change.shape[-1] + 1)
    explores = (layer >= ends.exploration_start[..., None]) & (layer <= ends.exploration_end[..., None])
    count = explores.sum(-1)
    rise: Array = np.where(count > 0, np.where(explores, change, 0.0).sum(-1) / np.maximum(count, 1), np.nan)
    return rise


def contradicting_layers(low: Float[Array, " layers"], high: Float[Array, " layers"], ends: PhaseEnds, zero: float) -> tuple[int, ...]:
    """The layers, from 1, whose interval lies wholly outside what the phase of the first curve says of them.

    In exploration such an interval is below 0, in convergence above 0, in integration beyond `zero` on either side. Layers below
    the beginning of exploration are in no phase. NaN intervals contradict nothing.
    """
    spans = phase_spans(ends, len(low))
    outside = {"exploration": high < 0, "integration": (low > zero) | (high < -zero), "convergence": low > 0}
    return tuple(
        layer for name, span in spans.items() if span is not None for layer in range(span[0], span[1] + 1) if outside[name][layer - 1]
    )


def first_turn(change: Float[Array, " layers"], high: Float[Array, " layers"], start: int) -> int | None:
    """The last layer with ΔS above 0 below the first one, from `start` on, whose interval lies wholly below 0; None if there is none."""
    falls = np.flatnonzero(high[max(start, 1) - 1 :] < 0)
    if not len(falls):
        return None
    before = np.flatnonzero(change[: max(start, 1) - 1 + falls[0]] > 0)
    return int(before[-1]) + 1 if len(before) else None
