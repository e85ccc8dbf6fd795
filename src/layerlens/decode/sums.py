"""What a pass over the vocabulary, or over a part of it, leaves of each policy, and how parts become one.

Each row keeps the largest logit m of its part and the shifted sums S = Σ e^(x-m) and A = Σ e^(x-m) (x-m), so that
entropy = log S - A/S without cancellation. A divergence KL(p ‖ q) keeps D = Σ e^(x_p-m_p) ((x_p-m_p) - (x_q-m_q)) as well.
Within a chunk of the vocabulary sums are float32; across chunks they are joined here, in float64 and in a fixed order.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from jaxtyping import Float, Int
from torch import Tensor


@dataclass(frozen=True)
class Moments:
    """The sums of a set of policies; `argmax` (a token id) where agreement was asked for."""

    m: Float[Tensor, " rows"]
    S: Float[Tensor, " rows"]
    A: Float[Tensor, " rows"]
    argmax: Int[Tensor, " rows"] | None = None

    @property
    def log_S(self) -> Float[Tensor, " rows"]:
        return self.S.log()

    @property
    def entropy(self) -> Float[Tensor, " rows"]:
        return (self.log_S - self.A / self.S).clamp_min(0)


@dataclass(frozen=True)
class Sums:
    """All that is left of a part of the vocabulary; fields as `Task` asks for them."""

    own: Moments
    anchors: dict[str, Moments] = field(default_factory=dict)
    target: Float[Tensor, " rows"] | None = None
    """The logit of the target token, -inf where the part does not hold it."""
    kl: Float[Tensor, " rows"] | None = None
    kl_from: Float[Tensor, " rows"] | None = None
    top_values: Float[Tensor, "rows k"] | None = None
    top_ids: Int[Tensor, "rows k"] | None = None


def merge(parts: Sequence[Sums]) -> Sums:
    """Parts of the vocabulary, in its order, as one, without token ids. Sums are float64 afterwards."""
    own, shift, S = _merge_moments([part.own for part in parts])
    anchors: dict[str, Moments] = {}
    shifts: dict[str, tuple[Tensor, Tensor]] = {}
    for name in parts[0].anchors:
        anchors[name], *shifts[name] = _merge_moments([part.anchors[name] for part in parts])  # type: ignore[misc]
    target = None if parts[0].target is None else torch.stack([_of(part.target) for part in parts]).amax(0)
    kl = kl_from = None
    if parts[0].kl is not None:
        other = _spread(shifts["final"][0], shift)
        kl = _moved(torch.stack([_of(part.kl) for part in parts]), S, shift, shift - other)
    if parts[0].kl_from is not None:
        other, other_S = (_spread(values, shift) for values in shifts["reference"])
        kl_from = _moved(torch.stack([_of(part.kl_from) for part in parts]), other_S, other, other - shift)
    return Sums(own, anchors, target, kl, kl_from)


def divergence(cross: Float[Tensor, " rows"], p: Moments, q: Moments) -> Float[Tensor, " rows"]:
    """KL(p ‖ q) of D; the side that has fewer rows is compared with every state of the other's stack."""
    rows = cross.shape[0]
    p_S, p_log, q_log = (values.repeat(rows // values.shape[0]) for values in (p.S, p.log_S, q.log_S))
    return (cross / p_S - p_log + q_log).clamp_min(0)


def _merge_moments(parts: Sequence[Moments]) -> tuple[Moments, Float[Tensor, "parts rows"], Float[Tensor, "parts rows"]]:
    """The parts as one, how far each has to be shifted for that, and its S before."""
    m = torch.stack([part.m for part in parts])
    top = m.amax(0)
    S = torch.stack([part.S for part in parts]).double()
    shift = (m - top).double()
    A = _moved(torch.stack([part.A for part in parts]), S, shift, shift)
    return Moments(top, (shift.exp() * S).sum(0), A), shift, S


def _moved(sums: Tensor, S: Tensor, shift: Tensor, added: Tensor) -> Float[Tensor, " rows"]:
    """Σ over parts of e^shift (sums + S · added): what shifted sums are once all parts share one shift."""
    return (shift.exp() * (sums.double() + S * added)).sum(0)


def _spread(single: Tensor, like: Tensor) -> Tensor:
    return single.repeat(1, like.shape[1] // single.shape[1])


def _of(values: Tensor | None) -> Tensor:
    assert values is not None
    return values
