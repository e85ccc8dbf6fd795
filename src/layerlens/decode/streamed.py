"""Hidden vectors to entropy, log-probability, KL, agreement and top-k, in one stream over the vocabulary.

Logits exist only as chunks of bounded size. Each row keeps a running maximum m and the shifted sums S = Σ e^(x-m) and
A = Σ e^(x-m) (x-m), so that entropy = log S - A/S without cancellation; a divergence between two policies keeps one
cross sum more. Products are accumulated in float32, sums over chunks in float64.
"""

from __future__ import annotations

import math
from collections.abc import Collection
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from layerlens.errors import ReadoutError, SelectionError

WANTS = ("entropy", "logp", "kl", "kl_from", "agrees")

ROWS_AT_ONCE = 4096
CHUNK_ELEMENTS = {"cpu": 1 << 21, "cuda": 1 << 26}
"""Logits in a chunk, by device type (float32 each); others as on the CPU."""


@dataclass(frozen=True)
class Readout:
    """What was asked for, `None` where it was not. Leading dimensions are those of the hidden vectors; nats, float32."""

    entropy: Float[Tensor, "*rows"] | None = None
    logp: Float[Tensor, "*rows"] | None = None
    kl: Float[Tensor, "*rows"] | None = None
    kl_from: Float[Tensor, "*rows"] | None = None
    agrees: Bool[Tensor, "*rows"] | None = None
    top_ids: Int[Tensor, "*rows k"] | None = None
    top_probs: Float[Tensor, "*rows k"] | None = None


@dataclass(frozen=True)
class Logits:
    """How a model turns a vector into logits: cap(scale · weight · h + bias) / temperature, read in chunks."""

    weight: Float[Tensor, "vocab d"]
    bias: Float[Tensor, " vocab"] | None = None
    scale: float = 1.0
    softcap: float | None = None
    temperature: float = 1.0

    def chunk(self, hidden: Float[Tensor, "rows d"], start: int, stop: int) -> Float[Tensor, "rows chunk"]:
        """Float32 logits of `hidden` (float32) for the tokens start...stop-1."""
        x = hidden @ self.weight[start:stop].float().T
        if self.scale != 1.0:
            x *= self.scale
        if self.bias is not None:
            x += self.bias[start:stop].float()
        if self.softcap is not None:
            x = x.div_(self.softcap).tanh_().mul_(self.softcap)
        if self.temperature != 1.0:
            x /= self.temperature
        return x


class _Policy:
    """Running sums of a set of rows, updated chunk by chunk."""

    def __init__(self, rows: int, device: torch.device):
        self.m = torch.full((rows,), -math.inf, device=device)
        self.S = torch.zeros(rows, dtype=torch.float64, device=device)
        self.A = torch.zeros_like(self.S)
        self.argmax = torch.zeros(rows, dtype=torch.long, device=device)

    def update(self, x: Float[Tensor, "rows chunk"], start: int) -> None:
        """Takes a chunk in; leaves in `y` and `e` the shifted logits and their exponentials, in `shift` and `r` what moved."""
        top, where = x.max(dim=-1)
        self.argmax = torch.where(top > self.m, where + start, self.argmax)
        m = torch.maximum(self.m, top)
        self.S_before = self.S
        self.shift = torch.where(self.S > 0, (self.m - m).double(), 0.0)
        self.r = self.shift.exp()
        self.y = x.sub_(m[:, None])
        self.e = self.y.exp()
        self.A = self.r * (self.A + self.S * self.shift) + (self.e * self.y).sum(-1)
        self.S = self.r * self.S + self.e.sum(-1)
        self.m = m

    @property
    def log_S(self) -> Float[Tensor, " rows"]:
        return self.S.log()


class _Divergence:
    """KL(p ‖ q), for `stack` policies against one: rows are [stack · rows] on the stacked side, [rows] on the other."""

    def __init__(self, stacked: _Policy, single: _Policy, forward: bool):
        self.stacked, self.single, self.forward = stacked, single, forward
        self.D = torch.zeros_like(stacked.S)

    def update(self) -> None:
        """Adds the chunk that both sides have just taken in: D = Σ e_p (y_p - y_q), shifted like S and A."""
        one, many = self.single, self.stacked
        wide = (-1, *one.y.shape)
        if self.forward:  # p stacked, q single
            added = (many.e.view(wide) * (many.y.view(wide) - one.y)).sum(-1)
            p_shift, q_shift, p_r, p_S = many.shift, self._spread(one.shift), many.r, many.S_before
        else:
            added = (one.e * (one.y - many.y.view(wide))).sum(-1)
            p_shift, q_shift, p_r, p_S = self._spread(one.shift), many.shift, self._spread(one.r), self._spread(one.S_before)
        self.D = p_r * (self.D + p_S * (p_shift - q_shift)) + added.reshape(-1)

    def value(self) -> Float[Tensor, " rows"]:
        one, many = self.single, self.stacked
        one_S, one_log = self._spread(one.S), self._spread(one.log_S)
        p_S, p_log, q_log = (many.S, many.log_S, one_log) if self.forward else (one_S, one_log, many.log_S)
        return (self.D / p_S - p_log + q_log).clamp_min(0)

    def _spread(self, values: Tensor) -> Tensor:
        return values.repeat(self.D.numel() // values.numel())


class _TopK:
    """The k largest logits of each row so far."""

    def __init__(self, rows: int, k: int, device: torch.device):
        self.k = k
        self.values = torch.empty((rows, 0), device=device)
        self.ids = torch.empty((rows, 0), dtype=torch.long, device=device)

    def update(self, x: Float[Tensor, "rows chunk"], start: int) -> None:
        values, ids = x.topk(min(self.k, x.shape[1]), dim=-1)
        values, ids = torch.cat([self.values, values], dim=-1), torch.cat([self.ids, ids + start], dim=-1)
        self.values, order = values.topk(min(self.k, values.shape[1]), dim=-1)
        self.ids = ids.gather(-1, order)


@torch.no_grad()
def readout(
    hidden: Float[Tensor, "*stack rows d"],
    unembed: Float[Tensor, "vocab d"] | Logits,
    *,
    want: Collection[str] = ("entropy",),
    targets: Int[Tensor, " rows"] | None = None,
    final: Float[Tensor, "rows d"] | None = None,
    reference: Float[Tensor, "rows d"] | None = None,
    top_k: int = 0,
) -> Readout:
    """The internal policies softmax(unembed · h) of hidden vectors, measured without holding their logits.

    Args:
        hidden: vectors as they are to be unembedded (a final norm, if any, already applied), any float dtype. All of a
            stack go through the vocabulary together.
        unembed: the unembedding, or `Logits` where the model has a bias, scale, soft-cap or temperature.
        want: any of "entropy", "logp" (needs `targets`), "kl" = KL(π ‖ π_final) and "agrees" (need `final`), "kl_from" =
            KL(π_reference ‖ π) (needs `reference`).
        targets: token ids; a negative one gives NaN.
        final: the vectors of the model's own policy at the same rows, ready to be unembedded.
        reference: the vectors of the policy to measure divergence from.
        top_k: how many of the most likely tokens to return, 0 for none.

    Returns:
        Values in nats, shaped as `hidden` without its last dimension.

    Raises:
        SelectionError: `want` names something unknown, or its input is missing.
        ReadoutError: the vocabulary is empty, or a row holds NaN or an infinite logit (its `stack` and `row` say which).
    """
    logits = unembed if isinstance(unembed, Logits) else Logits(unembed)
    needs = {"logp": targets, "kl": final, "agrees": final, "kl_from": reference}
    names = {"logp": "targets", "kl": "final", "agrees": "final", "kl_from": "reference"}
    for name in want:
        if name not in WANTS:
            raise SelectionError(f"unknown readout {name!r}: choose from {', '.join(WANTS)}")
        if name in needs and needs[name] is None:
            raise SelectionError(f"readout {name!r} needs {names[name]}=")
    vocab, d = logits.weight.shape
    if vocab == 0:
        raise ReadoutError("the unembedding has no rows: an empty vocabulary has no policy")
    if hidden.shape[-1] != d:
        raise SelectionError(f"hidden vectors have {hidden.shape[-1]} dimensions, the unembedding {d}")
    lead, rows = hidden.shape[:-1], hidden.shape[-2]
    stack = hidden.reshape(-1, rows, d)
    # one chunk of the vocabulary serves all states of a stack, so rows are cut, not stacks
    step = max(1, ROWS_AT_ONCE // max(1, stack.shape[0]))

    def cut(values: Tensor | None, start: int) -> Tensor | None:
        return None if values is None else values[start : start + step]

    parts = [
        _read_block(logits, stack[:, a : a + step], want, top_k, cut(targets, a), cut(final, a), cut(reference, a), a)
        for a in range(0, max(1, rows), step)
    ]
    joined = {name: torch.cat([part[name] for part in parts], dim=1) for name in parts[0]}
    return Readout(**{name: value.reshape(*lead, *value.shape[2:]) for name, value in joined.items()})


def _read_block(
    logits: Logits,
    stack: Float[Tensor, "stack rows d"],
    want: Collection[str],
    top_k: int,
    targets: Int[Tensor, " rows"] | None,
    final: Float[Tensor, "rows d"] | None,
    reference: Float[Tensor, "rows d"] | None,
    first_row: int,
) -> dict[str, Tensor]:
    n_stack, n_rows, d = stack.shape
    device = logits.weight.device
    vocab = logits.weight.shape[0]
    hidden = stack.reshape(-1, d).to(device, torch.float32)
    n = hidden.shape[0]
    own = _Policy(n, device)
    others: dict[str, tuple[_Policy, Tensor]] = {}
    divergences: dict[str, _Divergence] = {}
    if {"kl", "agrees"} & set(want):
        assert final is not None
        others["final"] = _Policy(n_rows, device), final.to(device, torch.float32)
    if "kl" in want:
        divergences["kl"] = _Divergence(own, others["final"][0], forward=True)
    if "kl_from" in want:
        assert reference is not None
        others["reference"] = _Policy(n_rows, device), reference.to(device, torch.float32)
        divergences["kl_from"] = _Divergence(own, others["reference"][0], forward=False)
    top = _TopK(n, top_k, device) if top_k else None
    goal = targets.to(device).repeat(n_stack) if "logp" in want and targets is not None else None
    goal_logit = torch.full((n,), math.nan, device=device)

    chunk = max(64, CHUNK_ELEMENTS.get(device.type, CHUNK_ELEMENTS["cpu"]) // n)
    for start in range(0, vocab, chunk):
        stop = min(start + chunk, vocab)
        x = logits.chunk(hidden, start, stop)
        if goal is not None:
            here = (goal >= start) & (goal < stop)
            goal_logit = torch.where(here, x.gather(1, (goal - start).clamp(0, stop - start - 1)[:, None])[:, 0], goal_logit)
        if top is not None:
            top.update(x, start)
        own.update(x, start)
        for policy, vectors in others.values():
            policy.update(logits.chunk(vectors, start, stop), start)
        for divergence in divergences.values():
            divergence.update()

    for policy in (own, *(policy for policy, _ in others.values())):
        _refuse_bad_rows(policy, n_rows, first_row)
    out: dict[str, Tensor] = {}
    if "entropy" in want:
        out["entropy"] = (own.log_S - own.A / own.S).clamp_min(0).float()
    if goal is not None:
        out["logp"] = ((goal_logit - own.m).double() - own.log_S).float()
    for name, divergence in divergences.items():
        out[name] = divergence.value().float()
    if "agrees" in want:
        out["agrees"] = own.argmax == others["final"][0].argmax.repeat(n_stack)
    if top is not None:
        out["top_ids"] = top.ids
        out["top_probs"] = ((top.values - own.m[:, None]).double() - own.log_S[:, None]).exp().float()
    return {name: value.reshape(n_stack, n_rows, *value.shape[1:]) for name, value in out.items()}


def _refuse_bad_rows(policy: _Policy, n_rows: int, first_row: int) -> None:
    bad = ~(policy.m.isfinite() & policy.S.isfinite() & policy.A.isfinite())
    if bad.any():
        index = int(bad.nonzero()[0, 0])
        stack, row = index // n_rows, first_row + index % n_rows
        raise ReadoutError(f"row {row} of state {stack} has NaN or infinite logits: no policy to measure", stack, row)
