"""Online-softmax accumulators of policies over a part of the vocabulary, and how those of several parts are combined.

Of the logits x of a row in one part of the vocabulary, the accumulators are the maximum m = max x and the shifted sums
S = Σ e^(x-m) and A = Σ e^(x-m) (x-m). Parts are combined by rescaling each to the common maximum M, with t = m - M:

    S = Σ_parts e^t S_part,    A = Σ_parts e^t (A_part + t S_part)

m and S are those of the online softmax (Milakov & Gimelshein 2018, arXiv 1805.02867); A extends it by the first moment. Entropy,
log-probabilities and divergences follow from them (`metrics.entropy`, `metrics.log_probability`, `metrics.kl_divergence`).
D = Σ e^(p-m_p) (p-q), of the logits p and q of two policies, is a further accumulator; parts of it are combined as
Σ_parts e^t D_part with the t of p. Within a chunk of the vocabulary the accumulators are float32; across chunks they are
combined here, in float64 and in a fixed order.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from jaxtyping import Float, Int
from torch import Tensor

from layerlens.metrics.entropy import entropy
from layerlens.metrics.kl_divergence import kl_divergence
from layerlens.metrics.log_probability import log_partition


@dataclass(frozen=True)
class Moments:
    """The accumulators m, S and A of a set of policies; `argmax` is each policy's most likely token, if it was asked for."""

    m: Float[Tensor, "*parts rows"]
    S: Float[Tensor, "*parts rows"]
    A: Float[Tensor, "*parts rows"]
    argmax: Int[Tensor, " rows"] | None = None

    @property
    def log_partition(self) -> Float[Tensor, " rows"]:
        """log Z = log Σ e^x, float64."""
        return log_partition(self.m, self.S)

    @property
    def entropy(self) -> Float[Tensor, " rows"]:
        """H = log S - A / S in nats, at least 0."""
        return entropy(self.S, self.A)


@dataclass(frozen=True)
class PartialSums:
    """All accumulators of a part of the vocabulary, or of the whole; those that the `ReadoutRequest` does not ask for are None."""

    own: Moments
    anchors: dict[str, Moments] = field(default_factory=dict)
    target_logit: Float[Tensor, "*parts rows"] | None = None
    """The logit of each row's target token, -inf if the part does not hold the token."""
    kl: Float[Tensor, "*parts rows"] | None = None
    """D of KL(π ‖ π_final)."""
    kl_from: Float[Tensor, "*parts rows"] | None = None
    """D of KL(π_reference ‖ π)."""
    top_logits: Float[Tensor, "rows k"] | None = None
    """The k largest logits of each row, largest first, and in `top_ids` their tokens. Only of the whole vocabulary."""
    top_ids: Int[Tensor, "rows k"] | None = None
    second: dict[str, Float[Tensor, " rows"]] = field(default_factory=dict)
    """What a second look at the logits sums (`second_look.py`). Only of the whole vocabulary."""


def combine(parts: Sequence[PartialSums]) -> PartialSums:
    """The accumulators of consecutive parts of the vocabulary, combined; float64 afterwards. Token ids are left out."""
    anchors = {name: _stack_moments([part.anchors[name] for part in parts]) for name in parts[0].anchors}
    target_logit, kl, kl_from = (_stack([getattr(part, name) for part in parts]) for name in ("target_logit", "kl", "kl_from"))
    return combine_stacked(PartialSums(_stack_moments([part.own for part in parts]), anchors, target_logit, kl, kl_from))


def combine_stacked(parts: PartialSums) -> PartialSums:
    """Like `combine`, for parts that already lie in one tensor per field, [parts, rows]."""
    own, own_shift = _rescale_and_sum(parts.own)
    anchors, shifts = {}, {}
    for name, moments in parts.anchors.items():
        anchors[name], shifts[name] = _rescale_and_sum(moments)
    return PartialSums(
        own,
        anchors,
        None if parts.target_logit is None else parts.target_logit.amax(0),
        None if parts.kl is None else (own_shift.exp() * parts.kl).sum(0),
        None if parts.kl_from is None else (_repeat_over_stack(shifts["reference"], parts.kl_from).exp() * parts.kl_from).sum(0),
    )


def divergence(D: Float[Tensor, " rows"], p: Moments, q: Moments) -> Float[Tensor, " rows"]:
    """KL(p ‖ q) in nats. If `p` or `q` has fewer rows than `D`, it is an anchor, and is compared with every state of the stack."""
    return kl_divergence(D, *(_repeat_over_stack(values, D) for values in (p.S, p.log_partition, q.log_partition)))


def divergence_sum(p: Moments, q: Moments, shifted: Float[Tensor, "*parts n"]) -> Float[Tensor, "*parts n"]:
    """D = Σ e^(p-m_p) (p-q), float64, from `shifted` = Σ e^(p-m_p) (q-m_q) over the same part of the vocabulary.

    Maxima are subtracted first, so that an offset between the logits of two policies does not enter a float32 sum.
    """
    p_m, p_S, p_A, q_m = (_repeat_over_stack(values.double(), shifted) for values in (p.m, p.S, p.A, q.m))
    return p_A + p_S * (p_m - q_m) - shifted.double()


def _rescale_and_sum(parts: Moments) -> tuple[Moments, Float[Tensor, "parts rows"]]:
    """The combined accumulators, and the shift t = m - M of each part."""
    top = parts.m.amax(0)
    shift = (parts.m - top).double()
    scale = shift.exp()
    return Moments(top, (scale * parts.S).sum(0), (scale * (parts.A + parts.S * shift)).sum(0)), shift


def _stack_moments(parts: Sequence[Moments]) -> Moments:
    return Moments(*(torch.stack([getattr(part, name) for part in parts]) for name in ("m", "S", "A")))


def _stack(values: Sequence[Tensor | None]) -> Float[Tensor, "parts rows"] | None:
    return torch.stack([value for value in values if value is not None]) if values[0] is not None else None


def _repeat_over_stack(single: Float[Tensor, "*parts rows"], like: Float[Tensor, "*parts n"]) -> Float[Tensor, "*parts n"]:
    """One state's values repeated for every state of a stack, to the last dimension of `like`."""
    return single.repeat(*[1] * (single.dim() - 1), like.shape[-1] // single.shape[-1])
