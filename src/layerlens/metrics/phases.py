"""Exploration, integration, convergence: the phases of a module's entropy change over layers.

A mean ΔS counts as zero within a tolerance, the larger of a share of the early rise and the half-width of the bootstrap
interval, so near-zero layers of either sign are integration. The phases are the cut of the layers into three runs (any of
which may be empty) that fits best: a layer costs what its ΔS lies outside the range of its phase.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int

Array = np.ndarray
Span = tuple[int, int]

PHASES = ("exploration", "integration", "convergence")


@dataclass(frozen=True)
class PhaseRule:
    """What counts as zero.

    Attributes:
        tolerance: share of the early rise (the largest mean ΔS in the lower half of the layers; the largest |ΔS| where
            nothing rises there) under which a mean ΔS counts as zero.
        z: half-widths of the bootstrap interval, in standard errors, under which it counts as zero as well.
    """

    tolerance: float = 0.1
    z: float = 1.96

    def zero_band(self, change: Float[Array, "*curves layers"], standard_error: Float[Array, " layers"]) -> Float[Array, "*curves layers"]:
        """The tolerance of every layer, nats. NaN standard errors (one sample) leave the share of the rise alone."""
        lower_half = change[..., : (change.shape[-1] + 1) // 2]
        rise = lower_half.max(-1, keepdims=True)
        rise = np.where(rise > 0, rise, np.abs(change).max(-1, keepdims=True))
        band: Array = np.maximum(self.tolerance * rise, np.nan_to_num(self.z * standard_error))
        return band


def find_phases(
    change: Float[Array, "*curves layers"], zero: Float[Array, "*curves layers"]
) -> tuple[Int[Array, "*curves"], Int[Array, "*curves"]]:
    """The last layer of exploration and the last of integration (counted from 1; 0, or equal to the former, if empty).

    Args:
        change: mean ΔS of the FFN at layers 1...L.
        zero: how far from 0 a mean counts as zero, at each.
    """
    n_layers = change.shape[-1]
    costs = np.stack([np.maximum(0, zero - change), np.maximum(0, np.abs(change) - zero), np.maximum(0, change + zero)])
    before = np.concatenate([np.zeros((3, *change.shape[:-1], 1)), costs.cumsum(-1)], axis=-1)
    explore, integrate, converge = before
    # cost of ending exploration after b1 layers and integration after b2 >= b1
    total = (explore - integrate)[..., :, None] + (integrate - converge)[..., None, :] + converge[..., -1][..., None, None]
    allowed = np.arange(n_layers + 1)[:, None] <= np.arange(n_layers + 1)[None, :]
    # rounding of the sums must not decide between equal cuts: the earliest wins
    flat = np.where(allowed, np.round(total, 9), np.inf).reshape(*change.shape[:-1], -1)
    best = flat.argmin(-1)
    return best // (n_layers + 1), best % (n_layers + 1)


def phase_spans(exploration_end: int, integration_end: int, n_layers: int) -> dict[str, Span | None]:
    """First and last layer of each phase, None for an empty one."""
    ends = (0, int(exploration_end), int(integration_end), n_layers)
    return {name: (a + 1, b) if b > a else None for name, a, b in zip(PHASES, ends, ends[1:], strict=False)}
