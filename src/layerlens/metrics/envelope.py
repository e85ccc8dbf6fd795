"""How late a model settles: the upper envelope of its distance from the final policy over depth, and what is read off it.

All functions take a mean distance K(l) at l = 0...L along the last axis, the embedding (l = 0) included, that ends at 0: the KL of the
layers' policies to the final policy under norm final, or one minus their agreement. So they take a bootstrap of curves too.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Float

Array = np.ndarray

LATE = 0.9
"""Relative depth at which the late share is read."""
SETTLED = 0.1
"""Share of the envelope's start below which a policy has settled."""


def upper_envelope(distance: Float[Array, "*curves depths"]) -> Float[Array, "*curves depths"]:
    """M(l) = max over m >= l of K(m): the largest distance that is still to come. It never rises."""
    envelope: Array = np.maximum.accumulate(distance[..., ::-1], axis=-1)[..., ::-1]
    return envelope


def late_share(distance: Float[Array, "*curves depths"], depth: float = LATE) -> Float[Array, "*curves"]:
    """M at relative depth 0.9, interpolated linearly between layers, as a share of M(0): what is left in the last tenth.

    0 for a model that has settled by then, 1 for one that moves in the last tenth alone. NaN if M(0) is 0 or NaN.
    """
    envelope = upper_envelope(distance)
    place = depth * (envelope.shape[-1] - 1)
    below = min(int(place), envelope.shape[-1] - 2)
    part = place - below
    with np.errstate(invalid="ignore", divide="ignore"):
        value = ((1 - part) * envelope[..., below] + part * envelope[..., below + 1]) / envelope[..., 0]
    share: Array = np.where(envelope[..., 0] > 0, value, np.nan)
    return share


def settle_depth(distance: Float[Array, "*curves depths"], share: float = SETTLED) -> Float[Array, "*curves"]:
    """The first relative depth l / L at which M is at most a tenth of M(0), interpolated linearly between layers.

    NaN if the envelope never falls so far, or if M(0) is 0 or NaN.
    """
    envelope = upper_envelope(distance)
    limit = share * envelope[..., :1]
    under = envelope <= limit
    first = under.argmax(-1)
    after = np.take_along_axis(envelope, first[..., None], -1)
    before = np.take_along_axis(envelope, np.maximum(first - 1, 0)[..., None], -1)
    with np.errstate(invalid="ignore", divide="ignore"):
        part = ((before - limit) / (before - after))[..., 0]
    depth = (first - 1 + part) / (envelope.shape[-1] - 1)
    found: Array = np.where(under.any(-1) & (envelope[..., 0] > 0), depth, np.nan)
    return found


def first_settled(distance: Float[Array, "*curves depths"], share: float = SETTLED) -> Float[Array, "*curves"]:
    """The first layer, from 1, whose M is at most `share` of M(0); NaN if there is none. The embedding is the start, never the answer."""
    envelope = upper_envelope(distance)
    under = envelope <= share * envelope[..., :1]
    first: Array = np.where(under.any(-1), under.argmax(-1), np.nan)
    return first
