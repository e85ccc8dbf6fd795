"""What a pass over the vocabulary, or over a part of it, leaves of each policy, and how parts become one.

Each row keeps the largest logit m of its part and the shifted sums S = Σ e^(x-m) and A = Σ e^(x-m) (x-m), so that
entropy = log S - A/S without cancellation. A divergence KL(p ‖ q) keeps D = Σ e^(p-m) (p-q) of the two policies' logits as well.
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

    m: Float[Tensor, "*parts rows"]
    S: Float[Tensor, "*parts rows"]
    A: Float[Tensor, "*parts rows"]
    argmax: Int[Tensor, " rows"] | None = None

    @property
    def log_partition(self) -> Float[Tensor, " rows"]:
        """log Σ e^x, float64."""
        return self.m.double() + self.S.log()

    @property
    def entropy(self) -> Float[Tensor, " rows"]:
        return (self.S.log() - self.A / self.S).clamp_min(0)


@dataclass(frozen=True)
class PartialSums:
    """All that is left of a part of the vocabulary; fields as `ReadoutRequest` asks for them."""

    own: Moments
    anchors: dict[str, Moments] = field(default_factory=dict)
    target: Float[Tensor, "*parts rows"] | None = None
    """The logit of the target token, -inf where the part does not hold it."""
    kl: Float[Tensor, "*parts rows"] | None = None
    kl_from: Float[Tensor, "*parts rows"] | None = None
    top_values: Float[Tensor, "rows k"] | None = None
    top_ids: Int[Tensor, "rows k"] | None = None


def merge(parts: Sequence[PartialSums]) -> PartialSums:
    """Parts of the vocabulary, in its order, as one, without token ids. Sums are float64 afterwards."""
    anchors = {name: _stack_moments([part.anchors[name] for part in parts]) for name in parts[0].anchors}
    rest = (_stack([getattr(part, name) for part in parts]) for name in ("target", "kl", "kl_from"))
    return join(PartialSums(_stack_moments([part.own for part in parts]), anchors, *rest))


def join(parts: PartialSums) -> PartialSums:
    """The same for parts that already lie one after the other in every field, [parts, rows]."""
    own, own_shift = _join_moments(parts.own)
    anchors, shifts = {}, {}
    for name, moments in parts.anchors.items():
        anchors[name], shifts[name] = _join_moments(moments)
    return PartialSums(
        own,
        anchors,
        None if parts.target is None else parts.target.amax(0),
        None if parts.kl is None else (own_shift.exp() * parts.kl).sum(0),
        None if parts.kl_from is None else (_spread(shifts["reference"], parts.kl_from).exp() * parts.kl_from).sum(0),
    )


def divergence(cross: Float[Tensor, " rows"], p: Moments, q: Moments) -> Float[Tensor, " rows"]:
    """KL(p ‖ q) of D; the side that has fewer rows is compared with every state of the other's stack."""
    p_S, p_log, q_log = (_spread(values, cross) for values in (p.S, p.log_partition, q.log_partition))
    return (cross / p_S - p_log + q_log).clamp_min(0)


def cross_sum(p: Moments, q: Moments, cross: Float[Tensor, "*parts n"]) -> Float[Tensor, "*parts n"]:
    """D of the same part's sums and Σ e^(p-m_p) (q-m_q), float64."""
    p_m, p_S, p_A, q_m = (_spread(values.double(), cross) for values in (p.m, p.S, p.A, q.m))
    return p_A + p_S * (p_m - q_m) - cross.double()


def _join_moments(parts: Moments) -> tuple[Moments, Float[Tensor, "parts rows"]]:
    """The parts as one, and how far each had to be shifted for that."""
    top = parts.m.amax(0)
    shift = (parts.m - top).double()
    scale = shift.exp()
    return Moments(top, (scale * parts.S).sum(0), (scale * (parts.A + parts.S * shift)).sum(0)), shift


def _stack_moments(parts: Sequence[Moments]) -> Moments:
    return Moments(*(torch.stack([getattr(part, name) for part in parts]) for name in ("m", "S", "A")))


def _stack(values: Sequence[Tensor | None]) -> Float[Tensor, "parts rows"] | None:
    return torch.stack([value for value in values if value is not None]) if values[0] is not None else None


def _spread(single: Float[Tensor, "*parts rows"], like: Float[Tensor, "*parts n"]) -> Float[Tensor, "*parts n"]:
    """One state's values for every state of a stack."""
    return single.repeat(*[1] * (single.dim() - 1), like.shape[-1] // single.shape[-1])
