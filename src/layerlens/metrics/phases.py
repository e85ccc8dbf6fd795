"""Exploration, integration, convergence: the phases of a module's entropy change over layers.

The phases are those of Bottom-up Policy Optimization (arXiv 2512.19673); the rule that finds them is this project's.
A mean ΔS counts as zero within a tolerance, the larger of a share of the early rise and the half-width of the bootstrap
interval, so near-zero layers of either sign are integration. Exploration begins at the first layer whose ΔS is above zero,
which must be among the lower layers. From there on, the phases are the best-fitting cut of the layers into three runs (any of
which may be empty): the cost of a layer is the distance of its ΔS from the range of its phase.
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


@dataclass(frozen=True)
class PhaseRule:
    """How phases are found: what counts as zero, and how low exploration must begin.

    Attributes:
        tolerance: share of the early rise below which a mean ΔS counts as zero. The early rise is the largest mean ΔS in the
            lower half of the layers, or the largest |ΔS| if no ΔS is above zero there.
        z: half-width of the bootstrap interval, in standard errors, below which the mean over all samples counts as zero too.
        entry: share of the layers, from the bottom, among which exploration must begin. A layer below its beginning (the
            first layer of a small model may lower entropy) belongs to no phase.
    """

    tolerance: float = 0.1
    z: float = 1.96
    entry: float = 0.25

    def find(self, change: Float[Array, "curves layers"]) -> PhaseEnds:
        """The phases of mean ΔS over layers, nats; row 0 is the mean over all samples, the rows below are its bootstrap resamples."""
        error = change[1:].std(axis=0) if len(change) > 1 else np.zeros(change.shape[-1])
        # a resample stands for one data set that might have been drawn: the interval of all resamples does not apply to it
        zero = np.concatenate([self.zero_band(change[:1], error), self.zero_band(change[1:], 0 * error)])
        return find_phases(change, zero, math.ceil(self.entry * change.shape[-1]))

    def zero_band(self, change: Float[Array, "*curves layers"], standard_error: Float[Array, " layers"]) -> Float[Array, "*curves layers"]:
        """The |ΔS| up to which each layer counts as zero, nats. With NaN standard errors (one sample) only the share of the rise counts."""
        lower_half = change[..., : (change.shape[-1] + 1) // 2]
        rise = lower_half.max(-1, keepdims=True)
        rise = np.where(rise > 0, rise, np.abs(change).max(-1, keepdims=True))
        band: Array = np.maximum(self.tolerance * rise, np.nan_to_num(self.z * standard_error))
        return band


def find_phases(change: Float[Array, "*curves layers"], zero: Float[Array, "*curves layers"], entry: int) -> PhaseEnds:
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
    return PhaseEnds(start, best // (n_layers + 1), best % (n_layers + 1))


def phase_spans(ends: PhaseEnds, n_layers: int) -> dict[str, Span | None]:
    """First and last layer of each phase of the first curve, None for an empty phase."""
    start, explored, integrated = (int(end.flat[0]) for end in ends)
    spans = {"exploration": (start, explored), "integration": (explored + 1, integrated), "convergence": (integrated + 1, n_layers)}
    return {name: span if 0 < span[0] <= span[1] else None for name, span in spans.items()}
