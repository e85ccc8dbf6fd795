"""One batch of token ids to its numbers: forward passes with hooks, states through the readout in bounded portions."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import pairwise

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from layerlens.analysis.plan import READOUT_FIELDS, Plan
from layerlens.decode import readout
from layerlens.decode.request import NEEDS
from layerlens.errors import ReadoutError
from layerlens.metrics import CKA_TOKENS, cosine_sums, debiased_cka, state_norm, stream_cosine
from layerlens.models import Convention, LayerSite, LensModel
from layerlens.types import SITES, STREAM_SITES, Module, Site

BUFFER_BYTES = {"cpu": 64 << 20, "cuda": 512 << 20}
"""Bytes of states that are collected before they go through the vocabulary together, by device type."""

WINDOW_BYTES = 256 << 20
"""Bytes of residual states of all layers, in float32, that similarity may hold at once; a longer text runs again window by window."""


class _Batch:
    """Token ids padded on the right, and the rows of them that are wanted."""

    def __init__(self, ids: Sequence[Int[Tensor, " _"]], keep: Sequence[Int[Tensor, " _"]], names: Sequence[str]):
        self.ids = torch.nn.utils.rnn.pad_sequence(list(ids), batch_first=True)
        self.keep, self.names = list(keep), list(names)
        width = self.ids.shape[1]
        self.flat = torch.cat([rows + number * width for number, rows in enumerate(keep)])
        following = torch.full_like(self.ids, -1)
        for number, tokens in enumerate(ids):
            following[number, : len(tokens) - 1] = tokens[1:]
        self.targets = following.flatten()[self.flat]
        self.cuts = np.cumsum([0, *map(len, keep)])

    def rows(self, states: Tensor) -> Tensor:
        """The wanted rows of padded states, [n, d]."""
        return states.flatten(0, 1).index_select(0, self.flat.to(states.device))

    def describe_row(self, row: int) -> str:
        """Which token of which sample a wanted row is, in words."""
        number = int(np.searchsorted(self.cuts, row, side="right")) - 1
        return f"token {int(self.keep[number][row - self.cuts[number]])} of sample {self.names[number]}"


@torch.inference_mode()
def measure_batch(
    model: LensModel,
    ids: Sequence[Int[Tensor, " _"]],
    keep: Sequence[Int[Tensor, " _"]],
    plan: Plan,
    convention: Convention,
    names: Sequence[str],
    similarity_rows: Sequence[Int[Tensor, " _"]] | None = None,
) -> list[dict[str, np.ndarray]]:
    """Every metric of the plan, for each text by itself; texts see neither each other nor the padding.

    Args:
        ids: token ids of each text.
        keep: positions of the rows to measure in each text.
        convention: how states are read.
        names: what errors call each text.
        similarity_rows: positions of the rows that similarity is over, which needs no vocabulary; by default `keep`.

    Returns arrays by metric for each text, rows in front.

    Raises ReadoutError naming text, token, layer and site if a state has no policy (NaN or infinite logits).
    """
    batch = _Batch(ids, keep, names)
    wide = batch if similarity_rows is None else _Batch(ids, similarity_rows, names)
    anchors, held = _first_pass(model, batch, wide, plan, convention)
    values = _decode(model, batch, plan, convention, anchors) if plan.reads_rows else {}
    parts = [{name: array[a:b] for name, array in values.items()} for a, b in pairwise(batch.cuts)]
    if "similarity" in plan.metrics:
        for number, part in enumerate(parts):
            windows = (
                [held[:, wide.cuts[number] : wide.cuts[number + 1]]]
                if held is not None
                else _windows(model, ids[number], wide.keep[number], plan)
            )
            part |= _similarity(windows, len(wide.keep[number]))
    return parts


def _first_pass(
    model: LensModel, batch: _Batch, wide: _Batch, plan: Plan, convention: Convention
) -> tuple[dict[str, Tensor], Float[Tensor, "layers rows d"] | None]:
    """The anchors: vectors of the policies that all others are compared with, which must be known before anything is decoded.

    The same pass collects the residual states of all layers for similarity, if they fit WINDOW_BYTES (else None).
    """
    wanted: dict[str, LayerSite] = {}
    if "final" in {NEEDS.get(field) for field in plan.readout_fields}:
        wanted["final"] = (model.n_layers, "resid_post")
    if plan.kl_from_layer is not None:
        wanted["reference"] = (plan.kl_from_layer, "resid_post")
    holding = "similarity" in plan.metrics and len(wide.flat) <= _window_rows(model, plan)
    residual: set[LayerSite] = {(layer, "resid_post") for layer in plan.layers} if holding else set()
    places = set(wanted.values()) | residual
    if not places:
        return {}, None
    device = model.parts.unembedding_weight.device
    seen: dict[LayerSite, Tensor] = {}
    stream: list[Tensor] = []

    def on_state(layer: int, site: Site, states: Tensor) -> None:
        if (layer, site) in wanted.values():
            seen[layer, site] = batch.rows(states)
        if (layer, site) in residual:
            stream.append(wide.rows(states).to(device, torch.float32))

    model.forward(batch.ids, sorted(places), on_state)
    conventions = {"final": model.convention("final"), "reference": convention}
    anchors = {name: conventions[name].vectors(*place, seen[place]) for name, place in wanted.items()}
    return anchors, torch.stack(stream) if holding else None


def _decode(model: LensModel, batch: _Batch, plan: Plan, convention: Convention, anchors: dict[str, Tensor]) -> dict[str, np.ndarray]:
    asked: set[LayerSite] = {(layer, site) for layer in plan.layers for site in plan.sites} if plan.reads_states else set()
    # H^(l-1) leaves one block and enters the next: decode it once
    twins: dict[LayerSite, LayerSite] = {
        (layer, "resid_pre"): (layer - 1, "resid_post")
        for layer, site in asked
        if site == "resid_pre" and (layer - 1, "resid_post") in asked
    }
    decode = asked - twins.keys()
    streams = {(layer, site) for layer in plan.layers for module in plan.modules for site in STREAM_SITES[module]}
    decoder = _Decoder(model, batch, plan, convention, anchors)
    held: dict[LayerSite, Tensor] = {}

    def on_state(layer: int, site: Site, states: Tensor) -> None:
        rows = batch.rows(states)
        if (layer, site) in decode:
            decoder.add(layer, site, rows)
        if (layer, site) in streams:
            held[layer, site] = rows
            for module, (output, stream) in STREAM_SITES.items():
                if {(layer, output), (layer, stream)} <= held.keys() and site in (output, stream):
                    decoder.add_stream_cosine(layer, module, stream_cosine(held.pop((layer, output)), held.pop((layer, stream))))

    # states come in the order of the sites, so that a module's stream is there before its output is
    places = sorted(decode | streams, key=lambda place: (place[0], SITES.index(place[1])))
    model.forward(batch.ids, places, on_state)
    decoder.flush()
    for (layer, site), (from_layer, from_site) in twins.items():
        decoder.copy(layer, site, from_layer, from_site)
    if "final" in anchors and "logp_next" in plan.decoded:
        decoder.values["final_logp_next"] = decoder.final_logp_next()
    return decoder.values


class _Decoder:
    """Decodes states in the order they come, in stacks of bounded size, and keeps the numbers."""

    def __init__(self, model: LensModel, batch: _Batch, plan: Plan, convention: Convention, anchors: dict[str, Tensor]):
        self.model, self.batch, self.plan, self.convention, self.anchors = model, batch, plan, convention, anchors
        self.unembedding = model.unembedding(plan.temperature)
        self.waiting: list[tuple[LayerSite, Tensor]] = []
        n = len(batch.flat)
        shape = (n, len(plan.layers), len(plan.sites))
        self.values: dict[str, np.ndarray] = {
            name: np.zeros(shape, np.int8) if name == "agrees" else np.full(shape, np.nan, np.float32) for name in plan.decoded
        }
        if plan.spreads:
            self.values["logit_sd"] = np.zeros(shape, np.float32)
        if plan.top_k:
            k = min(plan.top_k, self.unembedding.weight.shape[0])
            self.values["top_ids"] = np.zeros((*shape, k), np.int32)
            self.values["top_probs"] = np.zeros((*shape, k), np.float32)
        if "state_norm" in plan.metrics:
            self.values["state_norm"] = np.zeros(shape, np.float32)
        if plan.modules:
            self.values["stream_cosine"] = np.zeros((n, len(plan.layers), len(plan.modules)), np.float32)

    def add(self, layer: int, site: Site, rows: Tensor) -> None:
        if "state_norm" in self.values:
            self.values["state_norm"][self._place(layer, site)] = state_norm(rows).cpu().numpy()
        if not self.plan.unembeds:
            return
        self.waiting.append(((layer, site), self.convention.vectors(layer, site, rows)))
        size = sum(states.numel() * 4 for _, states in self.waiting)
        if size >= BUFFER_BYTES.get(rows.device.type, BUFFER_BYTES["cpu"]):
            self.flush()

    def add_stream_cosine(self, layer: int, module: Module, cosine: Tensor) -> None:
        self.values["stream_cosine"][:, self.plan.layers.index(layer), self.plan.modules.index(module)] = cosine.cpu().numpy()

    def flush(self) -> None:
        if not self.waiting:
            return
        device = self.unembedding.weight.device
        states = torch.stack([vectors.to(device) for _, vectors in self.waiting])
        spreads = self.model.logit_spread.sd(states).cpu().numpy() if self.plan.spreads else None
        try:
            read = readout(
                states,
                self.unembedding,
                want=self.plan.readout_fields,
                targets=self.batch.targets,
                final=self.anchors.get("final"),
                reference=self.anchors.get("reference"),
                top_k=self.plan.top_k,
                backend=self.plan.backend,
            )
        except ReadoutError as error:
            (layer, site), _ = self.waiting[error.stack]
            if error.anchor is not None:
                kl_from = self.plan.kl_from_layer if error.anchor == "reference" else None
                layer, site = kl_from or self.model.n_layers, "resid_post"
            raise ReadoutError(
                f"layer {layer}, {site}: NaN or infinite logits at {self.batch.describe_row(error.row)}, so the state has no policy; "
                "try another dtype (bfloat16 or float32 in place of float16), or check the weights",
                error.stack,
                error.row,
                error.anchor,
            ) from error
        for stack, ((layer, site), _) in enumerate(self.waiting):
            at = self._place(layer, site)
            for name in self.plan.decoded:
                self.values[name][at] = getattr(read, READOUT_FIELDS[name])[stack].cpu().numpy()
            if spreads is not None:
                self.values["logit_sd"][at] = spreads[stack]
            if self.plan.top_k:
                assert read.top_ids is not None
                assert read.top_probs is not None
                self.values["top_ids"][at] = read.top_ids[stack].cpu().numpy()
                self.values["top_probs"][at] = read.top_probs[stack].cpu().numpy()
        self.waiting.clear()

    def final_logp_next(self) -> np.ndarray:
        """The log-probability of the next token under the final policy, for every row."""
        device = self.unembedding.weight.device
        read = readout(
            self.anchors["final"].to(device), self.unembedding, want=("logp",), targets=self.batch.targets, backend=self.plan.backend
        )
        assert read.logp is not None
        return read.logp.cpu().numpy()

    def copy(self, layer: int, site: Site, from_layer: int, from_site: Site) -> None:
        for name, array in self.values.items():
            if name != "stream_cosine":
                array[self._place(layer, site)] = array[self._place(from_layer, from_site)]

    def _place(self, layer: int, site: Site) -> tuple[slice, int, int]:
        return slice(None), self.plan.layers.index(layer), self.plan.sites.index(site)


def _similarity(windows: Iterable[Float[Tensor, "layers window d"]], n: int) -> dict[str, np.ndarray]:
    """Cosine similarity and CKA of resid_post between layers, over `n` rows of one text that come in windows; each [1, layers, layers]."""
    spread = torch.linspace(0, n - 1, min(CKA_TOKENS, n)).round().long()
    cosines, picked, start = [], [], 0
    for states in windows:
        cosines.append(cosine_sums(states))
        stop = start + states.shape[1]
        picked.append(states[:, (spread[(spread >= start) & (spread < stop)] - start).to(states.device)])
        start = stop
    matrices = {"similarity": torch.stack(cosines).sum(0) / n, "cka": debiased_cka(torch.cat(picked, dim=1))}
    return {name: matrix.float().cpu().numpy()[None] for name, matrix in matrices.items()}


def _window_rows(model: LensModel, plan: Plan) -> int:
    """The number of rows whose states at all layers fit WINDOW_BYTES."""
    return max(1, WINDOW_BYTES // (4 * model.parts.unembedding_weight.shape[1] * len(plan.layers)))


def _windows(model: LensModel, ids: Tensor, keep: Tensor, plan: Plan) -> Iterator[Float[Tensor, "layers window d"]]:
    """The residual states of a text that is too long to hold them all, one forward pass per window of its rows."""
    device = model.parts.unembedding_weight.device
    places: list[LayerSite] = [(layer, "resid_post") for layer in plan.layers]
    for rows in torch.split(keep, _window_rows(model, plan)):
        kept: list[Tensor] = []

        def keep_rows(_layer: int, _site: Site, states: Tensor, rows: Tensor = rows, kept: list[Tensor] = kept) -> None:
            kept.append(states[0, rows.to(states.device)].to(device, torch.float32))

        model.forward(ids[None], places, keep_rows)
        yield torch.stack(kept)
