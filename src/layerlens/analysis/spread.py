"""The spread that norm "matched" scales logits to: that of the final policy's logits, on average over the run's rows.

It must be known before anything is decoded, and it depends on all texts. So these run once without the vocabulary; what each sample
contributes is kept beside the run, and processes share this work as they share the rest. The mean is taken of the kept contributions in
the order of the samples: every process, and every continued run, has the same number to the bit.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from layerlens.analysis.batches import Analysis
from layerlens.progress import Progress
from layerlens.prompts.sample import Sample
from layerlens.results import RunFolder, RunMemory, TextSpread
from layerlens.storage.reported_work import share_reported_work
from layerlens.types import Site


def with_spread(analysis: Analysis, store: RunFolder | RunMemory, report: Progress) -> Analysis:
    """The analysis with its spread measured on its texts; the number goes into the manifest."""

    def lacking(piece: tuple[int, list[int]]) -> int:
        return sum(store.text_spread(index) is None for index in piece[1])

    def work(piece: tuple[int, list[int]]) -> None:
        _, batch = piece
        samples = analysis.texts(batch)
        wanted = [index for index in batch if store.text_spread(index) is None]
        for index, (total, rows) in zip(batch, _totals(analysis, samples), strict=True):
            if index in wanted:
                store.write_text_spread(index, TextSpread(total, rows))
        report(len(wanted), sum(len(sample.token_ids) for sample in samples))

    share_reported_work(
        list(enumerate(analysis.batches)),
        report,
        claim=lambda piece: store.claim(f"spread-{piece[0]:06d}"),
        size=lambda piece: len(piece[1]),
        lacking=lacking,
        work=work,
    )
    parts = [part for index in range(len(analysis.samples)) if (part := store.text_spread(index)) is not None]
    spread = math.fsum(part.total for part in parts) / sum(part.rows for part in parts)
    store.amend(spread=spread)
    return replace(analysis, convention=replace(analysis.convention, spread=spread))


@torch.inference_mode()
def _totals(analysis: Analysis, samples: Sequence[Sample]) -> list[tuple[float, int]]:
    """For each text the sum of the spreads of the final policy's logits over the rows that the run reads, and their number."""
    model = analysis.model
    ids = torch.nn.utils.rnn.pad_sequence([torch.tensor(sample.token_ids) for sample in samples], batch_first=True)
    read = [analysis.rows_read(sample) for sample in samples]
    sums: list[Tensor] = []

    def on_state(layer: int, site: Site, states: Tensor) -> None:
        for number, rows in enumerate(read):
            final = model.convention("final").vectors(layer, site, states[number, torch.from_numpy(rows).to(states.device)])
            sums.append(model.logit_spread.sd(final).double().sum())

    model.forward(ids, [(model.n_layers, "resid_post")], on_state)
    totals: list[float] = torch.stack(sums).tolist()  # a GPU is waited for once
    return list(zip(totals, map(len, read), strict=True))
