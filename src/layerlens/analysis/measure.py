"""Texts to their numbers: one forward pass with hooks, or two, and the states that wait after it through the readout."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from itertools import pairwise

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from layerlens.analysis.layer_similarity import layer_similarity
from layerlens.analysis.plan import Plan
from layerlens.analysis.row_decoder import RowDecoder, to_host
from layerlens.analysis.state_memory import PORTION_BYTES, waiting_device
from layerlens.analysis.text_batch import TextBatch, portions
from layerlens.analysis.wanted_states import WantedStates, in_flow_order
from layerlens.metrics import state_norm, stream_cosine
from layerlens.models import Convention, LayerSite, LensModel
from layerlens.types import STREAM_SITES, Site

States = dict[LayerSite, Float[Tensor, "_ d"]]


def measure_batch(
    model: LensModel,
    ids: Sequence[Int[Tensor, " _"]],
    keep: Sequence[Int[Tensor, " _"]],
    plan: Plan,
    convention: Convention,
    names: Sequence[str],
    similarity_rows: Sequence[Int[Tensor, " _"]] | None = None,
    state_bytes: int = 1 << 30,
) -> Iterator[dict[str, np.ndarray]]:
    """Every metric of the plan, for each text by itself; texts see neither each other nor the padding.

    Args:
        ids: token ids of each text.
        keep: positions of the rows to measure in each text.
        convention: how states are read.
        names: what errors call each text.
        similarity_rows: positions of the rows that similarity is over, which needs no vocabulary; by default `keep`.
        state_bytes: bytes of states that may wait until they are decoded (`state_memory.py`). A text whose states take no more runs
            through the model once, any other twice.

    Yields arrays by metric for each text in turn, rows in front. Texts whose states take PORTION_BYTES or less run together.

    Raises ReadoutError naming text, token, layer and site if a state has no policy (NaN or infinite logits).
    """
    compared = keep if similarity_rows is None else similarity_rows
    wanted = WantedStates.of(model, plan)
    states = len({*wanted.decoded, *wanted.anchors.values(), *wanted.residual})
    device = model.parts.unembedding_weight.device
    most = min(state_bytes, PORTION_BYTES.get(device.type, PORTION_BYTES["cpu"])) // (_row_bytes(model) * max(1, states))
    for part in portions([max(map(len, rows)) for rows in zip(keep, compared, strict=True)], most):
        batch, wide = (TextBatch(ids[part], rows[part], names[part]) for rows in (keep, compared))
        yield from _Measurement(model, batch, wide, plan, convention, wanted, state_bytes).run()


class _Measurement:
    """The numbers of texts that run together. `wide` has the rows that similarity is over, `batch` those of everything else."""

    def __init__(
        self,
        model: LensModel,
        batch: TextBatch,
        wide: TextBatch,
        plan: Plan,
        convention: Convention,
        wanted: WantedStates,
        state_bytes: int,
    ):
        self.model, self.batch, self.wide, self.wanted, self.state_bytes = model, batch, wide, wanted, state_bytes
        self.device = model.parts.unembedding_weight.device
        self.decoder = RowDecoder(model, batch, plan, convention)
        self.similarity: list[dict[str, np.ndarray]] = [{} for _ in batch.names]

    @torch.inference_mode()
    def run(self) -> list[dict[str, np.ndarray]]:
        """Arrays by metric for each text."""
        wanted, decoder = self.wanted, self.decoder
        inside = self.wide.numbers_in(self.batch) if wanted.residual else None
        waiting = {*wanted.decoded, *wanted.anchors.values(), *(wanted.residual if inside is not None else ())}
        apart = wanted.residual if inside is None else ()
        if self._bytes(waiting, apart) <= self.state_bytes:
            held, stream = self._forward(waiting, apart, observed=True)
            self._compare_layers(stream or held, inside)
            if wanted.decoded:
                decoder.decode({place: held[place] for place in wanted.decoded}, self._anchors(held))
        else:
            self._run_twice()
        decoder.collect()
        for (layer, site), (from_layer, from_site) in wanted.twins.items():
            decoder.copy(layer, site, from_layer, from_site)
        cuts = pairwise(self.batch.cuts)
        return [
            {name: array[a:b] for name, array in decoder.values.items()} | more for (a, b), more in zip(cuts, self.similarity, strict=True)
        ]

    def _run_twice(self) -> None:
        """The first pass gives the anchors and similarity, the second one all states, which are decoded in groups of equal size."""
        wanted = self.wanted
        held, stream = self._forward(wanted.anchors.values(), wanted.residual, observed=False)
        self._compare_layers(stream, None)
        stream.clear()
        anchors = self._anchors(held)
        groups = max(1, -(-self._bytes(wanted.decoded, ()) // self.state_bytes))
        size = -(-len(wanted.decoded) // groups)

        def decode_full_group(states: States) -> None:
            if len(states) == size:
                self.decoder.decode(states, anchors)
                states.clear()

        rest, _ = self._forward(wanted.decoded, (), observed=True, on_held=decode_full_group, group=size)
        if rest:
            self.decoder.decode(rest, anchors)

    def _forward(
        self,
        waiting: Collection[LayerSite],
        apart: Collection[LayerSite],
        observed: bool,
        on_held: Callable[[States], None] | None = None,
        group: int | None = None,
    ) -> tuple[States, States]:
        """One pass of the texts through the model.

        Args:
            waiting: places whose states are held at the batch's rows.
            apart: places whose states are held at the rows of similarity.
            observed: whether lengths and stream cosines are measured.
            on_held: is given the states that are held at the batch's rows after each of them; it may take them away.
            group: how many of the waiting states are held at once; None for all.

        Returns the states that are held at the batch's rows, and those at the rows of similarity.
        """
        wanted = self.wanted
        measured = wanted.lengths | wanted.streams if observed else frozenset()
        store = waiting_device(self.device, self._bytes(list(waiting)[:group], apart))
        held, stream, pairs = States(), States(), States()
        sources: set[torch.device] = set()

        def on_state(layer: int, site: Site, states: Tensor) -> None:
            place = (layer, site)
            sources.add(states.device)
            if place in apart:
                stream[place] = self.wide.rows(states).to(store, non_blocking=True)
            if place not in waiting and place not in measured:
                return
            rows = self.batch.rows(states)
            if place in measured:
                self._observe(layer, site, rows, pairs)
            if place in waiting:
                held[place] = rows.to(store, non_blocking=True)
                if on_held is not None:
                    on_held(held)

        places = in_flow_order({*waiting, *apart, *measured})
        if places:
            self.model.forward(self.batch.ids, places, on_state)
        if store != self.device:  # what waits on the host may still be on its way
            for device in sources:
                torch.cuda.synchronize(device)
        return held, stream

    def _observe(self, layer: int, site: Site, rows: Float[Tensor, "n d"], pairs: States) -> None:
        """Measures a state as it stands, and its module's stream cosine once `pairs` holds both of the states that it compares."""
        if (layer, site) in self.wanted.lengths:
            self.decoder.note("state_norm", layer, site, state_norm(rows))
        if (layer, site) in self.wanted.streams:
            pairs[layer, site] = rows
            for module, (output, stream) in STREAM_SITES.items():
                if {(layer, output), (layer, stream)} <= pairs.keys() and site in (output, stream):
                    self.decoder.note("stream_cosine", layer, module, stream_cosine(pairs.pop((layer, output)), pairs.pop((layer, stream))))

    def _compare_layers(self, states: States, inside: Int[Tensor, " compared"] | None) -> None:
        """Similarity of each text. `inside` are the numbers of its rows among those of the states; None if the states have no others."""
        if not self.wanted.residual:
            return
        numbers = torch.arange(len(self.wide)) if inside is None else inside
        layers = [states[place] for place in self.wanted.residual]
        of_texts = [layer_similarity(layers, numbers[a:b], self.device) for a, b in pairwise(self.wide.cuts)]
        copied = to_host({f"{number} {name}": matrix for number, text in enumerate(of_texts) for name, matrix in text.items()})
        self.similarity = [{name: copied[f"{number} {name}"] for name in text} for number, text in enumerate(of_texts)]

    def _anchors(self, held: States) -> dict[str, Float[Tensor, "n d"]]:
        return {name: held[place] for name, place in self.wanted.anchors.items()}

    def _bytes(self, waiting: Collection[LayerSite], apart: Collection[LayerSite]) -> int:
        """Bytes of the states that are held at the batch's rows and at the rows of similarity."""
        return _row_bytes(self.model) * (len(waiting) * len(self.batch) + len(apart) * len(self.wide))


def _row_bytes(model: LensModel) -> int:
    """Bytes of one state of one row, in the model's own dtype."""
    return model.parts.unembedding_weight.shape[1] * model.parts.dtype.itemsize
