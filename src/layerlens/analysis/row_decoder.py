"""States that wait, through the vocabulary in blocks of rows, to the numbers of one batch of texts.

The host waits for a GPU once after each block, to know whether every row has a policy, so that an error names the row and no more
work is queued than `BLOCK_BYTES`; and once in `collect`, for all numbers in one copy. Similarity takes one more copy for all texts of the
batch (`measure.py`), since the states it compares are given up before they are decoded if memory is short. Nothing else waits:
tests/analysis/test_waits.py counts it.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from jaxtyping import Float, Shaped
from torch import Tensor

from layerlens.analysis.plan import READOUT_FIELDS, Plan
from layerlens.analysis.text_batch import TextBatch
from layerlens.decode import readout
from layerlens.decode.request import SECOND_LOOK, rows_at_once
from layerlens.errors import ReadoutError
from layerlens.models import Convention, LayerSite, LensModel
from layerlens.types import Module, Site

BLOCK_BYTES = {"cpu": 64 << 20, "cuda": 512 << 20}
"""Bytes of vectors that go to the readout in one call, by device type."""

Array = np.ndarray


class RowDecoder:
    """The numbers of a batch: arrays by metric, `n` rows in front. They are collected where they are computed until `collect`."""

    def __init__(self, model: LensModel, batch: TextBatch, plan: Plan, convention: Convention):
        self.model, self.batch, self.plan, self.convention = model, batch, plan, convention
        self.unembedding = model.unembedding(plan.temperature)
        self.device = self.unembedding.weight.device
        self.found: dict[str, dict[tuple[int, ...], Tensor]] = defaultdict(dict)
        """By metric and place (a layer's number and a site's, or a module's) its rows, not copied to the host yet."""
        self.values = self._empty_values(len(batch))

    def _empty_values(self, n: int) -> dict[str, Array]:
        plan, k = self.plan, min(self.plan.top_k, self.unembedding.weight.shape[0])
        shape = (n, len(plan.layers), len(plan.sites))
        values: dict[str, Array] = {
            name: np.zeros(shape, np.int8) if name == "agrees" else np.full(shape, np.nan, np.float32) for name in plan.decoded
        }
        if plan.spreads:
            values["logit_sd"] = np.zeros(shape, np.float32)
        if k:
            values |= {"top_ids": np.zeros((*shape, k), np.int32), "top_probs": np.zeros((*shape, k), np.float32)}
        if "state_norm" in plan.metrics:
            values["state_norm"] = np.zeros(shape, np.float32)
        if plan.modules:
            values["stream_cosine"] = np.zeros((n, len(plan.layers), len(plan.modules)), np.float32)
        return values

    def note(self, name: str, layer: int, part: Site | Module, rows: Shaped[Tensor, "n ..."]) -> None:
        """Keeps what was computed of the states at a site of a layer, or of a module's."""
        parts: Sequence[str] = self.plan.modules if name == "stream_cosine" else self.plan.sites
        self.found[name][self.plan.layers.index(layer), parts.index(part)] = rows

    def decode(self, states: Mapping[LayerSite, Float[Tensor, "n d"]], anchors: Mapping[str, Float[Tensor, "n d"]]) -> None:
        """Decodes states, and beside them the anchors of their rows, once for each call.

        Args:
            states: by layer and site.
            anchors: states of the final policy ("final") and of the policy of layer `kl_from_layer` ("reference"), if they are compared.

        Raises ReadoutError naming text, token, layer and site if a state has no policy.
        """
        places = list(states)
        size = self._block_rows([states[place] for place in places], len(anchors))
        blocks = [self._decode_block(places, states, anchors, slice(a, a + size)) for a in range(0, len(self.batch), size)]
        for name in blocks[0]:
            rows = torch.cat([block[name] for block in blocks], dim=1)
            if name == "final_logp_next":
                self.found[name][()] = rows[0]
                continue
            for number, (layer, site) in enumerate(places):
                self.note(name, layer, site, rows[number])

    def collect(self) -> None:
        """Copies what was kept to the host, in one copy."""
        stacks = {name: torch.stack([rows.to(self.device) for rows in found.values()]) for name, found in self.found.items()}
        for name, arrays in to_host(stacks).items():
            for place, array in zip(self.found[name], arrays, strict=True):
                if place:
                    self.values[name][:, place[0], place[1]] = array
                else:
                    self.values[name] = array
        self.found.clear()

    def copy(self, layer: int, site: Site, from_layer: int, from_site: Site) -> None:
        """Gives a place the numbers of another place that has the same states."""
        layers, sites = self.plan.layers.index, self.plan.sites.index
        for name, array in self.values.items():
            if name not in ("stream_cosine", "final_logp_next"):
                array[:, layers(layer), sites(site)] = array[:, layers(from_layer), sites(from_site)]

    def _block_rows(self, states: Sequence[Tensor], anchors: int) -> int:
        """Rows of each state in a block: whole parts of what the readout passes through the vocabulary together."""
        part = rows_at_once(self.unembedding, len(states) + anchors, bool({*SECOND_LOOK} & {*self.plan.readout_fields}))
        bytes_of_part = part * len(states) * states[0].shape[1] * states[0].element_size()
        return part * max(1, BLOCK_BYTES.get(self.device.type, BLOCK_BYTES["cpu"]) // bytes_of_part)

    def _decode_block(
        self, places: Sequence[LayerSite], states: Mapping[LayerSite, Tensor], anchors: Mapping[str, Tensor], rows: slice
    ) -> dict[str, Tensor]:
        vectors = torch.stack(
            [self.convention.vectors(*place, states[place][rows].to(self.device, non_blocking=True)).to(self.device) for place in places]
        )
        found = {"logit_sd": self.model.logit_spread.sd(vectors)} if self.plan.spreads else {}
        of: dict[str, tuple[LayerSite, Convention]] = {"final": ((self.model.n_layers, "resid_post"), self.model.convention("final"))}
        if self.plan.kl_from_layer is not None:
            of["reference"] = ((self.plan.kl_from_layer, "resid_post"), self.convention)
        compared = {
            name: of[name][1].vectors(*of[name][0], anchor[rows].to(self.device, non_blocking=True)).to(self.device)
            for name, anchor in anchors.items()
        }
        try:
            read = readout(
                vectors,
                self.unembedding,
                want=self.plan.readout_fields,
                targets=self.batch.targets[rows],
                final=compared.get("final"),
                reference=compared.get("reference"),
                top_k=self.plan.top_k,
                backend=self.plan.backend,
            )
        except ReadoutError as error:
            layer, site = places[error.stack] if error.anchor is None else of[error.anchor][0]
            row = rows.start + error.row
            raise ReadoutError(
                f"layer {layer}, {site}: NaN or infinite logits at {self.batch.describe_row(row)}, so the state has no policy; "
                "try another dtype (bfloat16 or float32 in place of float16), or check the weights",
                error.stack,
                row,
                error.anchor,
            ) from error
        found |= {name: getattr(read, READOUT_FIELDS[name]) for name in self.plan.decoded}
        if read.top_ids is not None and read.top_probs is not None:
            found |= {"top_ids": read.top_ids.int(), "top_probs": read.top_probs}
        return found if read.final_logp is None else {**found, "final_logp_next": read.final_logp[None]}


def to_host(tensors: Mapping[str, Tensor]) -> dict[str, Array]:
    """Tensors of one device as arrays, of which a GPU is asked once: they are packed into one copy."""
    if not tensors:
        return {}
    packed = torch.cat([tensor.contiguous().flatten().view(torch.uint8) for tensor in tensors.values()]).cpu().numpy()
    cuts = np.cumsum([tensor.numel() * tensor.element_size() for tensor in tensors.values()])[:-1]
    return {
        name: part.view(torch.empty(0, dtype=tensor.dtype).numpy().dtype).reshape(tensor.shape)
        for (name, tensor), part in zip(tensors.items(), np.split(packed, cuts), strict=True)
    }
