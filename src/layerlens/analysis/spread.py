"""The spread that norm "matched" scales logits to: that of the final policy's logits, on average over the run's rows.

It must be known before anything is decoded, and it depends on all texts. So the texts are sampled first, and run once without the
vocabulary; what each sample contributes is kept beside the run, and processes share this work as they share the rest. The mean is
taken of the kept contributions in the order of the samples: every process, and every continued run, has the same number to the bit.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from layerlens.analysis.batches import Advance, Analysis
from layerlens.prompts.sample import Sample
from layerlens.results import RunFolder, RunMemory, TextSpread
from layerlens.storage.shared_work import share_work
from layerlens.types import Site


def with_spread(analysis: Analysis, store: RunFolder | RunMemory, advance: Advance) -> Analysis:
    """The analysis with its responses sampled and its spread measured; the number goes into the manifest."""

    def lacking(batch: Sequence[int]) -> list[int]:
        return [index for index in batch if store.text_spread(index) is None]

    def work(piece: tuple[int, list[int]]) -> None:
        _, batch = piece
        samples = analysis.answered(batch)
        totals = _totals(analysis, samples)
        wanted = lacking(batch)
        for index, sample, (total, rows) in zip(batch, samples, totals, strict=True):
            if index in wanted:
                store.write_text_spread(index, TextSpread(tuple(sample.token_ids), total, rows))
        advance(len(wanted), sum(len(sample.token_ids) for sample in samples))

    batches = list(enumerate(analysis.batches))
    for _, batch in batches:
        advance(len(batch) - len(lacking(batch)), 0)
    share_work(batches, claim=lambda piece: store.claim(f"spread-{piece[0]:06d}"), is_done=lambda piece: not lacking(piece[1]), work=work)
    parts = [part for index in range(len(analysis.samples)) if (part := store.text_spread(index)) is not None]
    spread = math.fsum(part.total for part in parts) / sum(part.rows for part in parts)
    store.amend(spread=spread)
    samples = [replace(sample, token_ids=part.token_ids) for sample, part in zip(analysis.samples, parts, strict=True)]
    return replace(analysis, samples=samples, convention=replace(analysis.convention, spread=spread))


@torch.inference_mode()
def _totals(analysis: Analysis, samples: Sequence[Sample]) -> list[tuple[float, int]]:
    """For each text the sum of the spreads of the final policy's logits over the rows that the run reads, and their number."""
    model = analysis.model
    ids = torch.nn.utils.rnn.pad_sequence([torch.tensor(sample.token_ids) for sample in samples], batch_first=True)
    sums: list[tuple[float, int]] = []

    def on_state(layer: int, site: Site, states: Tensor) -> None:
        for number, rows in enumerate(map(analysis.rows_read, samples)):
            final = model.convention("final").vectors(layer, site, states[number, torch.from_numpy(rows).to(states.device)])
            sums.append((float(model.logit_spread.sd(final).double().sum()), len(rows)))

    model.forward(ids, [(model.n_layers, "resid_post")], on_state)
    return sums
