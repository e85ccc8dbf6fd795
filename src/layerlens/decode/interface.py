"""The public readout: hidden vectors to entropy, log-probability, KL, agreement and top k, in one pass over the vocabulary."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from layerlens.decode.choose import choose_backend
from layerlens.decode.moments import PartialSums, divergence
from layerlens.decode.request import NEEDS, SECOND_LOOK, KeptLogits, ReadoutRequest, rows_at_once
from layerlens.decode.unembedding import Unembedding
from layerlens.errors import ReadoutError, SelectionError
from layerlens.metrics.entropy import collision_entropy
from layerlens.metrics.js_divergence import js_divergence
from layerlens.metrics.kl_divergence import kl_from_cross_entropy
from layerlens.metrics.log_probability import log_probability

WANTS = ("entropy", "logp", "kl", "kl_from", "agrees", *SECOND_LOOK)


@dataclass(frozen=True)
class Readout:
    """The numbers that `readout` was asked for; a field that was not asked for is None.

    Leading dimensions are those of the hidden vectors. Entropy, log-probability and divergences are in nats, float32. The formulas
    and their sources are in docs/definitions.md.
    """

    entropy: Float[Tensor, "*rows"] | None = None
    """H(π) of each policy π."""
    logp: Float[Tensor, "*rows"] | None = None
    """log π(target), NaN if the target is negative."""
    final_logp: Float[Tensor, " one_state"] | None = None
    """log π_final(target) of each row, beside `logp` if anything is compared with the final policy; NaN if the target is negative."""
    kl: Float[Tensor, "*rows"] | None = None
    """KL(π ‖ π_final)."""
    kl_from: Float[Tensor, "*rows"] | None = None
    """KL(π_reference ‖ π)."""
    agrees: Bool[Tensor, "*rows"] | None = None
    """Whether the most likely token is the final policy's; of equally likely tokens the lowest id counts."""
    top_ids: Int[Tensor, "*rows k"] | None = None
    """The k most likely tokens, most likely first."""
    top_probs: Float[Tensor, "*rows k"] | None = None
    """Their probabilities."""
    js: Float[Tensor, "*rows"] | None = None
    """Jensen-Shannon divergence of π and π_final, in bits, from 0 to 1."""
    kl_from_final: Float[Tensor, "*rows"] | None = None
    """KL(π_final ‖ π)."""
    rank: Float[Tensor, "*rows"] | None = None
    """Rank of the target among all tokens, 1 for the most likely one; NaN if the target is negative."""
    renyi: Float[Tensor, "*rows"] | None = None
    """-log Σ π², the collision entropy."""


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
    """Measures the internal policies π = softmax(unembed · h) of hidden vectors h without holding their logits.

    Args:
        hidden: vectors as they are to be unembedded (a final norm, if any, already applied), any float dtype. All states of a
            stack go through the vocabulary together.
        unembed: the weights of the unembedding, or an `Unembedding` if the model has a bias, scale, soft-cap or temperature.
        want: any of "entropy", "logp" (needs `targets`), "kl" = KL(π ‖ π_final) and "agrees" (need `final`), "kl_from" =
            KL(π_reference ‖ π) (needs `reference`). Further "js" and "kl_from_final" (need `final`), "rank" (needs `targets`) and
            "renyi", which keep the logits of as many rows as `request.KEPT_LOGITS` allows and read them twice.
        targets: a token id per row; a negative id stands for no token and gives NaN.
        final: the vectors of the final policy at the same rows, as they are to be unembedded.
        reference: the vectors of the policy from which divergence is measured, at the same rows.
        top_k: how many of the most likely tokens to return, 0 for none.
        backend: which code computes the readout (docs/speed.md). A concrete backend ("torch-mm", "torch-onednn", "compile-mm",
            "compile-onednn", "native-float32" or "native-dot" on a CPU, "workspace" or "triton" on a GPU) computes every request that
            it can: native and Triton code keeps no logits to read twice. A family ("torch", "compile", "native") and "auto" stand
            for the concrete backend that is fastest for the request's shape on this machine. All backends agree to rounding.

    Returns:
        The numbers asked for, shaped as `hidden` without its last dimension.

    Raises:
        SelectionError: `want` or `backend` names something unknown, the backend is impossible here, an argument is missing or has
            the wrong shape, or a target is not in the vocabulary.
        ReadoutError: the vocabulary is empty, or a row has a NaN or infinite logit (its `stack`, `row` and `anchor` say which row).
    """
    unembedding = unembed if isinstance(unembed, Unembedding) else Unembedding(unembed)
    if isinstance(want, str):
        want = (want,)
    _refuse_bad_input(hidden, unembedding, want, {"targets": targets, "final": final, "reference": reference}, top_k)
    vocabulary, d_model = unembedding.weight.shape
    lead, rows = hidden.shape[:-1], hidden.shape[-2]
    stack = hidden.reshape(-1, rows, d_model)
    device = unembedding.weight.device
    needed = {NEEDS[name] for name in want if name in NEEDS}
    anchors = {name: vectors for name, vectors in (("final", final), ("reference", reference)) if name in needed}
    second = frozenset(want) & {*SECOND_LOOK}
    targets = targets.to(device, torch.long) if targets is not None and "targets" in needed else None
    # a chunk of the vocabulary serves all states of a stack, so a stack that is too large is cut along its rows
    step = rows_at_once(unembedding, stack.shape[0] + len(anchors), bool(second))
    parts, final_logp, memory, finite = [], [], KeptLogits(), _FiniteRows()
    for first in range(0, max(1, rows), step):
        part = slice(first, first + step)
        request = ReadoutRequest(
            unembedding,
            stack[:, part].reshape(-1, d_model).to(device),
            {name: vectors[part].to(device) for name, vectors in anchors.items() if vectors is not None},
            None if targets is None else targets[part].repeat(stack.shape[0]),
            kl="kl" in want,
            kl_from="kl_from" in want,
            agrees="agrees" in want,
            top_k=min(top_k, vocabulary),
            second=second,
            memory=memory,
        )
        sums = choose_backend(request, backend)(request)
        n_rows = request.hidden.shape[0] // stack.shape[0]
        finite.note(sums, n_rows, first)
        if targets is not None and "logp" in want and "final" in sums.anchors:
            logit, log_partition = unembedding.token_logits(request.anchors["final"], targets[part]), sums.anchors["final"].log_partition
            final_logp.append(log_probability(logit, log_partition).float().masked_fill(targets[part] < 0, math.nan))
        parts.append({name: value.reshape(stack.shape[0], n_rows, *value.shape[1:]) for name, value in _values(request, sums).items()})
    finite.require()
    joined = {name: torch.cat([part[name] for part in parts], dim=1) for name in parts[0]}
    unwanted = {"entropy", "logp"} - set(want)
    values = {name: value.reshape(*lead, *value.shape[2:]) for name, value in joined.items() if name not in unwanted}
    return Readout(**values, final_logp=torch.cat(final_logp) if final_logp else None)


def _refuse_bad_input(
    hidden: Tensor, unembedding: Unembedding, want: Collection[str], given: Mapping[str, Tensor | None], top_k: int
) -> None:
    """Raises the error that `readout` documents for everything but the numbers in the tensors; `given` holds the optional tensors."""
    for name in want:
        if name not in WANTS:
            raise SelectionError(f"unknown readout {name!r}: choose from {', '.join(WANTS)}")
        if name in NEEDS and given[NEEDS[name]] is None:
            raise SelectionError(f"readout {name!r} needs {NEEDS[name]}=")
    vocabulary, d_model = unembedding.weight.shape
    if vocabulary == 0:
        raise ReadoutError("the unembedding has no rows: an empty vocabulary has no policy")
    if hidden.dim() < 2 or not hidden.numel():
        raise SelectionError(f"hidden vectors are [rows, d] or stacks of that, with at least one row; got {list(hidden.shape)}")
    if hidden.shape[-1] != d_model:
        raise SelectionError(f"hidden vectors have {hidden.shape[-1]} dimensions, the unembedding {d_model}")
    if top_k < 0:
        raise SelectionError(f"top_k must be 0 or more, got {top_k}")
    rows = hidden.shape[-2]
    shapes = {"targets": [rows], "final": [rows, d_model], "reference": [rows, d_model], "bias": [vocabulary]}
    for name, tensor in {**given, "bias": unembedding.bias}.items():
        if tensor is not None and list(tensor.shape) != shapes[name]:
            raise SelectionError(f"{name} must be of shape {shapes[name]}, got {list(tensor.shape)}")
    targets = given["targets"]
    if targets is not None and (targets.is_floating_point() or int(targets.max()) >= vocabulary):
        raise SelectionError(f"targets must be token ids below {vocabulary}, or negative for none")


def _values(request: ReadoutRequest, sums: PartialSums) -> dict[str, Tensor]:
    """The fields of `Readout`, from the accumulators of the whole vocabulary; entropy in any case."""
    own = sums.own
    values = {"entropy": own.entropy.float()}
    if sums.target_logit is not None and request.targets is not None:
        values["logp"] = log_probability(sums.target_logit, own.log_partition).float().masked_fill(request.targets < 0, math.nan)
    if sums.kl is not None:
        values["kl"] = divergence(sums.kl, own, sums.anchors["final"]).float()
    if sums.kl_from is not None:
        values["kl_from"] = divergence(sums.kl_from, sums.anchors["reference"], own).float()
    if request.agrees:
        argmax, final = own.argmax, sums.anchors["final"].argmax
        assert argmax is not None
        assert final is not None
        values["agrees"] = argmax == final.repeat(argmax.shape[0] // final.shape[0])
    if request.second:
        values |= _second_values(request, sums)
    if sums.top_logits is not None and sums.top_ids is not None:
        values["top_ids"] = sums.top_ids
        values["top_probs"] = log_probability(sums.top_logits, own.log_partition[:, None]).exp().float()
    return values


def _second_values(request: ReadoutRequest, sums: PartialSums) -> dict[str, Tensor]:
    """The fields of `Readout` that take a second look at the logits."""
    second, values = sums.second, {}
    final = sums.anchors["final"].entropy.repeat(request.states) if {"js", "kl_from_final"} & request.second else None
    if final is not None and "js" in second:
        values["js"] = js_divergence(second["js"], sums.own.entropy, final).float()
    if final is not None and "kl_from_final" in second:
        values["kl_from_final"] = kl_from_cross_entropy(-second["kl_from_final"], final).float()
    if "renyi" in second:
        values["renyi"] = collision_entropy(second["renyi"]).float()
    if "rank" in second and request.targets is not None:
        values["rank"] = (1 + second["rank"]).float().masked_fill(request.targets < 0, math.nan)
    return values


class _FiniteRows:
    """Notes which rows have a policy, where they were computed: a GPU is waited for once, when all rows are queued."""

    def __init__(self) -> None:
        self.noted: list[tuple[Bool[Tensor, " n"], int, int, str | None]] = []

    def note(self, sums: PartialSums, n_rows: int, first_row: int) -> None:
        """Takes the accumulators of a stack: of each state, and of each anchor, `n_rows` rows from `first_row` on."""
        for anchor, policies in (None, sums.own), *sums.anchors.items():
            finite = policies.m.isfinite() & policies.S.isfinite() & policies.A.isfinite()
            self.noted.append((finite, n_rows, first_row, anchor))

    def require(self) -> None:
        """Raises ReadoutError that names the first row whose accumulators are not finite, if there is one."""
        if torch.stack([finite.all() for finite, *_ in self.noted]).all():
            return
        finite, n_rows, first_row, anchor = next(each for each in self.noted if not each[0].all())
        index = int((~finite).nonzero()[0, 0])
        stack, row = index // n_rows, first_row + index % n_rows
        whose = f"state {stack}" if anchor is None else f"the {anchor} policy"
        raise ReadoutError(f"row {row} of {whose} has NaN or infinite logits: no policy to measure", stack, row, anchor)
