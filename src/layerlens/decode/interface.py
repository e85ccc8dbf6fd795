"""Hidden vectors to entropy, log-probability, KL, agreement and top-k, in one stream over the vocabulary."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from layerlens.decode.choose import choose_backend
from layerlens.decode.moments import Moments, PartialSums, divergence
from layerlens.decode.request import ReadoutRequest, rows_at_once
from layerlens.decode.unembedding import Unembedding
from layerlens.errors import ReadoutError, SelectionError

WANTS = ("entropy", "logp", "kl", "kl_from", "agrees")


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


@torch.no_grad()
def readout(
    hidden: Float[Tensor, "*stack rows d"],
    unembed: Float[Tensor, "vocabulary d"] | Unembedding,
    *,
    want: Collection[str] = ("entropy",),
    targets: Int[Tensor, " rows"] | None = None,
    final: Float[Tensor, "rows d"] | None = None,
    reference: Float[Tensor, "rows d"] | None = None,
    top_k: int = 0,
    backend: str = "auto",
) -> Readout:
    """The internal policies softmax(unembed · h) of hidden vectors, measured without holding their logits.

    Args:
        hidden: vectors as they are to be unembedded (a final norm, if any, already applied), any float dtype. All of a
            stack go through the vocabulary together.
        unembed: the unembedding, or `Unembedding` where the model has a bias, scale, soft-cap or temperature.
        want: any of "entropy", "logp" (needs `targets`), "kl" = KL(π ‖ π_final) and "agrees" (need `final`), "kl_from" =
            KL(π_reference ‖ π) (needs `reference`).
        targets: token ids; a negative one gives NaN.
        final: the vectors of the model's own policy at the same rows, ready to be unembedded.
        reference: the vectors of the policy to measure divergence from.
        top_k: how many of the most likely tokens to return, 0 for none.
        backend: which code computes the readout (docs/speed.md). A concrete backend ("torch-mm", "torch-onednn", "compile-mm",
            "compile-onednn", "native-float32" or "native-dot" on a CPU, "workspace" or "triton" on a GPU) computes every request. A
            family ("torch", "compile", "native") and "auto" stand for the concrete backend that is fastest for the request's
            shape on this machine. All backends agree to rounding.

    Returns:
        Values in nats, shaped as `hidden` without its last dimension.

    Raises:
        SelectionError: `want` or `backend` names something unknown or unavailable, or an input is missing, of another shape, or
            no token of the vocabulary.
        ReadoutError: the vocabulary is empty, or a row holds NaN or an infinite logit (its `stack`, `row` and `anchor` say which).
    """
    logits = unembed if isinstance(unembed, Unembedding) else Unembedding(unembed)
    if isinstance(want, str):
        want = (want,)
    _refuse_bad_input(hidden, logits, want, {"targets": targets, "final": final, "reference": reference}, top_k)
    vocab, d = logits.weight.shape
    lead, rows = hidden.shape[:-1], hidden.shape[-2]
    stack = hidden.reshape(-1, rows, d)
    device = logits.weight.device
    anchors = {"final": final if {"kl", "agrees"} & set(want) else None, "reference": reference if "kl_from" in want else None}
    # one chunk of the vocabulary serves all states of a stack, so rows are cut, not stacks
    step = rows_at_once(logits, stack.shape[0] + sum(vectors is not None for vectors in anchors.values()))
    parts = []
    for first in range(0, max(1, rows), step):
        here = slice(first, first + step)
        request = ReadoutRequest(
            logits,
            stack[:, here].reshape(-1, d).to(device),
            {name: vectors[here].to(device) for name, vectors in anchors.items() if vectors is not None},
            targets[here].to(device, torch.long).repeat(stack.shape[0]) if targets is not None and "logp" in want else None,
            kl="kl" in want,
            kl_from="kl_from" in want,
            agrees="agrees" in want,
            top_k=min(top_k, vocab),
        )
        sums = choose_backend(request, backend)(request)
        n_rows = request.hidden.shape[0] // stack.shape[0]
        for anchor, policy in (None, sums.own), *sums.anchors.items():
            _refuse_bad_rows(policy, n_rows, first, anchor)
        parts.append({name: value.reshape(stack.shape[0], n_rows, *value.shape[1:]) for name, value in _values(request, sums).items()})
    joined = {name: torch.cat([part[name] for part in parts], dim=1) for name in parts[0]}
    unwanted = {"entropy"} - set(want)
    return Readout(**{name: value.reshape(*lead, *value.shape[2:]) for name, value in joined.items() if name not in unwanted})


def _refuse_bad_input(hidden: Tensor, logits: Unembedding, want: Collection[str], given: Mapping[str, Tensor | None], top_k: int) -> None:
    """What a pass would take for something else, or read beyond: all but the numbers themselves."""
    needs = {"logp": "targets", "kl": "final", "agrees": "final", "kl_from": "reference"}
    for name in want:
        if name not in WANTS:
            raise SelectionError(f"unknown readout {name!r}: choose from {', '.join(WANTS)}")
        if name in needs and given[needs[name]] is None:
            raise SelectionError(f"readout {name!r} needs {needs[name]}=")
    vocab, d = logits.weight.shape
    if vocab == 0:
        raise ReadoutError("the unembedding has no rows: an empty vocabulary has no policy")
    if hidden.dim() < 2 or not hidden.numel():
        raise SelectionError(f"hidden vectors are [rows, d] or stacks of that, with at least one row; got {list(hidden.shape)}")
    if hidden.shape[-1] != d:
        raise SelectionError(f"hidden vectors have {hidden.shape[-1]} dimensions, the unembedding {d}")
    if top_k < 0:
        raise SelectionError(f"top_k must be 0 or more, got {top_k}")
    rows = hidden.shape[-2]
    shapes = {"targets": [rows], "final": [rows, d], "reference": [rows, d], "bias": [vocab]}
    for name, tensor in {**given, "bias": logits.bias}.items():
        if tensor is not None and list(tensor.shape) != shapes[name]:
            raise SelectionError(f"{name} must be of shape {shapes[name]}, got {list(tensor.shape)}")
    targets = given["targets"]
    if targets is not None and (targets.is_floating_point() or int(targets.max()) >= vocab):
        raise SelectionError(f"targets must be token ids below {vocab}, or negative for none")


def _values(request: ReadoutRequest, sums: PartialSums) -> dict[str, Tensor]:
    """The numbers that were asked for, of sums over the whole vocabulary."""
    own = sums.own
    out = {"entropy": own.entropy.float()}
    if sums.target is not None and request.targets is not None:
        out["logp"] = (sums.target.double() - own.log_partition).float().masked_fill(request.targets < 0, math.nan)
    if sums.kl is not None:
        out["kl"] = divergence(sums.kl, own, sums.anchors["final"]).float()
    if sums.kl_from is not None:
        out["kl_from"] = divergence(sums.kl_from, sums.anchors["reference"], own).float()
    if request.agrees:
        argmax, final = own.argmax, sums.anchors["final"].argmax
        assert argmax is not None
        assert final is not None
        out["agrees"] = argmax == final.repeat(argmax.shape[0] // final.shape[0])
    if sums.top_values is not None and sums.top_ids is not None:
        out["top_ids"] = sums.top_ids
        out["top_probs"] = (sums.top_values.double() - own.log_partition[:, None]).exp().float()
    return out


def _refuse_bad_rows(policy: Moments, n_rows: int, first_row: int, anchor: str | None) -> None:
    fine = policy.m.isfinite() & policy.S.isfinite() & policy.A.isfinite()
    if not fine.all():
        index = int((~fine).nonzero()[0, 0])
        stack, row = index // n_rows, first_row + index % n_rows
        whose = f"state {stack}" if anchor is None else f"the {anchor} policy"
        raise ReadoutError(f"row {row} of {whose} has NaN or infinite logits: no policy to measure", stack, row, anchor)
