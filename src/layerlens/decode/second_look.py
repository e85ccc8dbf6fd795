"""Metrics that compare normalised policies or ranks, for which the logits of a whole row must have been seen before they are read again.

One pass over the vocabulary cannot compute them: m and S of a row (`moments.py`), and the logit of its target, are known only at the
end. So the backends that support them keep the logits of as many rows as `request.KEPT_LOGITS` allows, and read them twice. With p and
q the log-probabilities of a policy π and of the final policy π_f, and s = π + π_f:

    JS(π, π_f) = H(s / 2) - (H(π) + H(π_f)) / 2,    H(s / 2) = log 2 - Σ s log s / 2
    KL(π_f ‖ π) = -H(π_f) - Σ π_f p,    H_2(π) = -log Σ π²,    rank = 1 + #{tokens before the target}

where the tokens before the target are those with a larger logit, and of equal logits those with a lower id. H(π) and H(π_f) come from
the first pass. The sources of the formulas are in docs/definitions.md.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from layerlens.decode.moments import Moments, PartialSums
from layerlens.decode.reduction import BLOCK_ELEMENTS, blocks
from layerlens.decode.request import ReadoutRequest

Sums = dict[str, Float[Tensor, " n"]]
"""By what is asked for, the sum over tokens that it is made from, float64."""


class SecondLook:
    """Reads chunks of logits again, once `sums` of the whole vocabulary are known. Chunks may come in any order."""

    def __init__(self, request: ReadoutRequest, sums: PartialSums, block_elements: int = BLOCK_ELEMENTS):
        self.request, self.asked, self.block_elements = request, request.second, block_elements
        self.rows = min(request.row_counts.values())
        self.own = _normaliser(sums.own)
        self.final = _normaliser(sums.anchors["final"]) if {"js", "kl_from_final"} & self.asked else None
        self.target_logit = sums.target_logit.float() if "rank" in self.asked and sums.target_logit is not None else None

    def __call__(self, logits: dict[str, Float[Tensor, "_ chunk"]], first_token: int) -> Sums:
        """The sums over the chunk of the vocabulary that begins at `first_token`. The logits are overwritten."""
        found = {"rank": self._tokens_before(logits["own"], first_token)} if "rank" in self.asked else {}
        if self.asked == {"rank"}:
            return found
        log_final = None if self.final is None else _log_policy(logits["final"], *self.final)
        final = None if log_final is None else log_final.exp()
        own = logits["own"].view(-1, self.rows, logits["own"].shape[1])
        m, log_S = (values.view(-1, self.rows) for values in self.own)
        parts: dict[str, list[Tensor]] = {}
        for states, rows in blocks(len(own), self.rows, max(1, self.block_elements // own.shape[-1])):
            p = _log_policy(own[states, rows], m[states, rows], log_S[states, rows])
            for name, value in self._block_sums(p, None if final is None else final[rows]).items():
                parts.setdefault(name, []).append(value.flatten().double())
        return found | {name: torch.cat(values) for name, values in parts.items()}

    def _block_sums(self, p: Float[Tensor, "states rows chunk"], final: Float[Tensor, "rows chunk"] | None) -> dict[str, Tensor]:
        """Σ π_f p, Σ π² and Σ s log s of a block's log-probabilities p, as far as they are asked for; p is overwritten."""
        found: dict[str, Tensor] = {}
        if final is not None and "kl_from_final" in self.asked:
            found["kl_from_final"] = (p * final).sum(-1)
        if {"js", "renyi"} & self.asked:
            policy = p.exp_()
            if "renyi" in self.asked:
                found["renyi"] = policy.square().sum(-1)
            if final is not None and "js" in self.asked:
                s = policy.add_(final)
                found["js"] = s.clamp_min(torch.finfo(s.dtype).tiny).log_().mul_(s).sum(-1)
        return found

    def _tokens_before(self, x: Float[Tensor, "n chunk"], first_token: int) -> Float[Tensor, " n"]:
        """How many tokens of the chunk come before each row's target."""
        targets, logit = self.request.targets, self.target_logit
        assert targets is not None
        assert logit is not None
        # in a chunk before the target an equal logit comes before it too: x >= t is x > the number below t
        whole_chunk_before = targets >= first_token + x.shape[1]
        count = (x > torch.where(whole_chunk_before, logit.nextafter(torch.full_like(logit, -torch.inf)), logit)[:, None]).sum(-1)
        here = (targets >= first_token) & ~whole_chunk_before
        ids = torch.arange(first_token, first_token + x.shape[1], device=x.device)
        if x.device.type != "cpu":  # the host would have to wait to learn which rows these are
            return (count + ((x == logit[:, None]) & (ids < targets[:, None]) & here[:, None]).sum(-1)).double()
        row = here.nonzero()[:, 0]
        lower_id = ids < targets[row, None]
        return count.double().index_add(0, row, ((x[row] == logit[row, None]) & lower_id).sum(-1).double())


def add_sums(parts: Sequence[Sums]) -> Sums:
    """The sums over the whole vocabulary, of those over its chunks or ranges."""
    return {name: torch.stack([part[name] for part in parts]).sum(0) for name in parts[0]}


def _normaliser(moments: Moments) -> tuple[Float[Tensor, " n"], Float[Tensor, " n"]]:
    """m and log S of each row, float32, which are subtracted one after the other: their sum would round away digits of large logits."""
    return moments.m.float(), moments.S.log().float()


def _log_policy(x: Tensor, m: Tensor, log_S: Tensor) -> Tensor:
    """Logits to log-probabilities, in place."""
    return x.sub_(m[..., None]).sub_(log_S[..., None])
