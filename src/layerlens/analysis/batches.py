"""The work of one analysis: its fixed batches of samples, and what running one of them gives."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

import numpy as np
import torch
import xarray as xr
from jaxtyping import Float, Int

from layerlens.analysis.forecast import Forecast, measuring_forecast
from layerlens.analysis.measure import measure_batch
from layerlens.analysis.plan import Plan
from layerlens.analysis.row_positions import NOWHERE, measured_rows, reference_start, similarity_rows
from layerlens.analysis.row_sample import draw_rows
from layerlens.analysis.state_memory import held_bytes
from layerlens.models import Convention, Generation, LensModel
from layerlens.progress import Progress
from layerlens.prompts.sample import Sample, digest_of
from layerlens.prompts.segments import with_thinking
from layerlens.prompts.tokens import token_texts
from layerlens.results import SampleResult, sample_dataset
from layerlens.storage.manifest import AnalysisConfig, RunManifest, SampleSet, SamplingSettings, TextSource

Array = np.ndarray


@dataclass(frozen=True)
class Analysis:
    """One analysis: what to measure of which samples, in which fixed batches.

    Attributes:
        samples: each with an id; measured are texts that have their responses, if they are to have any.
        generate: how responses are sampled for prompts without one; None analyses prompts as they stand.
        batch_tokens: padded tokens of a batch at most.
        tokens_per_sample, precision: as in `analyze`.
        device: name of the card or processor that decodes.
        convention: how states are read; under norm "matched" its spread is None until it is measured.
        numbers: of the samples that are measured here, if not of all.
        source: where responses come from that were read from another run, or sampled by another engine.
        state_bytes: bytes of states that may wait until they are decoded (`state_memory.py`).
    """

    model: LensModel
    samples: Sequence[Sample]
    plan: Plan
    convention: Convention
    generate: Generation | None
    batch_tokens: int
    tokens_per_sample: int | Literal["auto"] | None = None
    precision: float | None = None
    device: str | None = None
    source: TextSource | None = None
    numbers: range | None = None
    state_bytes: int = 1 << 30

    @property
    def batches(self) -> list[list[int]]:
        """Sample numbers in order; each batch holds as many texts as fit `batch_tokens` when padded, and at least one.

        Texts that the model must not read together are in batches of their own.
        """
        batches: list[list[int]] = []
        width, mates = 0, self.model.parts.batch_mates
        for index in range(len(self.samples)) if self.numbers is None else self.numbers:
            length = len(self.samples[index].token_ids)
            alike = mates.together(length, width)
            width = max(width, length)
            if not batches or not alike or width * (len(batches[-1]) + 1) > self.batch_tokens:
                batches.append([])
                width = length
            batches[-1].append(index)
        return batches

    def forecast(self, left: Sequence[int], processes: int) -> Forecast:
        """What measuring the samples of these numbers takes `processes`; responses that are not sampled yet count at their longest."""
        samples = [self.samples[number] for number in left]
        new = [0 if self.generate is None or sample.has_response else self.generate.max_new_tokens for sample in samples]
        lengths = [len(sample.token_ids) + more for sample, more in zip(samples, new, strict=True)]
        rows = sum(map(self._rows_decoded, samples, new))
        sites = self.plan.sites
        twins = len(self.plan.layers) - 1 if {"resid_pre", "resid_post"} <= set(sites) else 0  # H^(l-1) is decoded once
        states = len(sites) * len(self.plan.layers) - twins if self.plan.unembeds else 0
        width = max(self.batch_tokens, *lengths)
        state = self.model.parts.unembedding_weight.shape[1] * self.model.parts.dtype.itemsize * states
        held = held_bytes(self.model.parts.unembedding_weight.device, self.state_bytes, state * max(lengths), state * rows)
        forecast = measuring_forecast(self.model, len(left), sum(lengths), rows, states, width, processes, held, self.plan.backend)
        return replace(forecast, is_bound=any(new))

    def run(
        self, batch: Sequence[int], wanted: Sequence[int], tokens: int | None, earlier: Sequence[xr.Dataset] | None, report: Progress
    ) -> Iterator[tuple[int, xr.Dataset]]:
        """Runs a batch, and yields number and data set of those of its samples that are wanted.

        The whole batch always runs: its composition is part of what makes a resumed run the same to the last bit.

        Args:
            tokens: decode up to this many response tokens of each sample; None decodes every row.
            earlier: the batch's data sets with half of `tokens` decoded, to which the other half is added; None starts anew.
            report: is told of finished samples and tokens.
        """
        samples = self.texts(batch)
        rows = [self.rows_read(sample) for sample in samples]
        draws = [self._draw(*each, tokens) for each in zip(batch, samples, rows, strict=True)]
        new = [drawn for drawn, _ in draws]
        if earlier is not None and tokens is not None:
            before = [self._draw(*each, tokens // 2)[0] for each in zip(batch, samples, rows, strict=True)]
            new = [np.setdiff1d(now, then) for now, then in zip(new, before, strict=True)]
        measured = self._measure(samples, new, first_round=earlier is None)
        report(len(wanted), sum(len(sample.token_ids) for sample in samples))
        for place, index in enumerate(batch):
            if index in wanted:
                values = measured[place] if earlier is None else _merge_rows(earlier[place], new[place], measured[place])
                yield index, sample_dataset(self._result(index, samples[place], *draws[place], values), self._attrs(tokens))

    def manifest(self) -> RunManifest:
        """What this analysis measures, on what; a folder holds one manifest."""
        return RunManifest(
            model=self.model.info(),
            config=AnalysisConfig(
                **asdict(self.plan),
                generate=SamplingSettings(**asdict(self.generate)) if self.generate else None,
                tokens_per_sample=self.tokens_per_sample,
                precision=self.precision,
            ),
            samples=SampleSet(len(self.samples), digest_of(self.samples)),
            batch_tokens=self.batch_tokens,
            device=self.device,
            state_bytes=self.state_bytes,
            lens_file=None if self.convention.lens is None else self.convention.lens.file,
            texts=self.source,
        )

    def texts(self, batch: Sequence[int]) -> list[Sample]:
        """The batch's samples, with what of them is thinking."""
        return [with_thinking(self.samples[index], self.model.tokenizer, self.plan.thinking_marks) for index in batch]

    def rows_read(self, sample: Sample) -> Int[Array, " rows"]:
        """Positions of the rows that count as measured, as the argument `rows` says."""
        start = reference_start(sample, self.model) if self.plan.rows == "reference" else NOWHERE
        return measured_rows(sample, self.plan.rows, start)

    def _rows_decoded(self, sample: Sample, new: int) -> int:
        """How many rows of a text are decoded, if `new` tokens of a response are still to be sampled."""
        known = 0 if new and self.plan.rows != "all" else len(self.rows_read(sample))
        drawn = self.tokens_per_sample if isinstance(self.tokens_per_sample, int) else known + new
        return min(known + new, 2 * drawn if self.plan.rows == "all" else drawn)

    def _draw(
        self, index: int, sample: Sample, rows: Int[Array, " rows"], tokens: int | None
    ) -> tuple[Int[Array, " drawn"], Float[Array, " drawn"] | None]:
        """The rows to decode, and how many rows each of them stands for (None: each for itself)."""
        return (rows, None) if tokens is None else draw_rows(rows, sample.in_response[rows], tokens, index)

    def _measure(self, samples: Sequence[Sample], new: Sequence[Int[Array, " _"]], first_round: bool) -> list[Mapping[str, Array]]:
        """Metrics at the new rows of each sample, and in the first round similarity over its rows; a text without new rows does not run."""
        active = [place for place in range(len(samples)) if len(new[place])]
        plan = self.plan if first_round else self.plan.without("similarity")
        parts: list[Mapping[str, Array]] = [{} for _ in samples]
        if active:
            ids = [torch.tensor(samples[place].token_ids) for place in active]
            keep = [torch.from_numpy(new[place]) for place in active]
            names = [samples[place].name for place in active]
            compared = [torch.from_numpy(similarity_rows(samples[place], plan.similarity_rows)) for place in active]
            measured = measure_batch(self.model, ids, keep, plan, self.convention, names, compared, self.state_bytes)
            for place, part in zip(active, measured, strict=True):
                parts[place] = part
        return parts

    def _attrs(self, tokens: int | None) -> Mapping[str, Any]:
        plan = self.plan
        attrs = {"model": self.model.name, "norm": plan.norm, "lens": plan.lens, "temperature": plan.temperature, "rows": plan.rows}
        attrs["similarity_rows"] = plan.similarity_rows
        more = {"spread": self.convention.spread, "kl_from_layer": plan.kl_from_layer, "tokens_per_sample": tokens}
        attrs["thinking_marks"] = " ".join(plan.thinking_marks)
        return {**attrs, **{name: value for name, value in more.items() if value is not None}}

    def _result(
        self, index: int, sample: Sample, rows: Int[Array, " drawn"], weight: Float[Array, " drawn"] | None, values: Mapping[str, Array]
    ) -> SampleResult:
        tokenizer = self.model.tokenizer
        named = np.unique(np.concatenate([np.asarray(sample.token_ids), values.get("top_ids", rows[:0]).ravel()])).tolist()
        return SampleResult(
            index=index,
            sample=sample,
            rows=rows,
            token_text=token_texts(tokenizer, (sample.token_ids[row] for row in rows.tolist())),
            layers=self.plan.layers,
            sites=self.plan.sites,
            modules=self.plan.modules,
            text="" if tokenizer is None else tokenizer.decode(list(sample.token_ids)),
            response_text="" if tokenizer is None else tokenizer.decode(list(sample.token_ids[sample.response_start :])),
            values=values,
            weight=weight,
            reference_start=reference_start(sample, self.model),
            token_names={} if tokenizer is None else dict(zip(named, token_texts(tokenizer, named), strict=True)),
        )


def _merge_rows(earlier: xr.Dataset, new: Int[Array, " new"], values: Mapping[str, Array]) -> dict[str, Array]:
    """A sample's earlier rows and its new ones, by position; metrics of the whole text as they were."""
    known = {str(name): variable for name, variable in earlier.data_vars.items()}
    order = np.concatenate([earlier["position"].values, new]).argsort()
    return {
        name: np.concatenate([variable.values, values[name]])[order] if "token" in variable.dims and values else variable.values
        for name, variable in known.items()
    }
