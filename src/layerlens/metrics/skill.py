"""What a policy knows of the text beyond guessing."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from jaxtyping import Bool, Float

Array = np.ndarray


def skill(logp_next: Any, vocabulary: int) -> Any:
    """log π(x) + ln V, nats: what a policy gives the token x that follows beyond the uniform distribution over V tokens.

    `logp_next` is a number or an array (labelled or not) of any shape. Above 0 the policy is better than guessing,
    below 0 worse. The mean over a text is ln V minus the cross-entropy.
    """
    return logp_next + math.log(vocabulary)


def is_usable(low: Float[Array, "*any"]) -> Bool[Array, "*any"]:
    """Whether a policy is usable: the lower end of the interval of its mean skill is above 0. False if there is no interval (NaN)."""
    usable: Array = low > 0
    return usable


def first_skilled(skill: Float[Array, "*curves layers"], of: Float[Array, "*curves"], share: float = 0.5) -> Float[Array, "*curves"]:
    """The first layer, from 1, whose mean skill is at least `share` of `of`, the skill of the final policy.

    NaN if no layer reaches that, or if the final policy itself is no better than guessing.
    """
    enough = (skill >= share * of[..., None]) & (of[..., None] > 0)
    first: Array = np.where(enough.any(-1), enough.argmax(-1) + 1.0, np.nan)
    return first
