"""One analysis as work to be done: which samples in which batches, and what a batch leaves behind."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

import numpy as np
import torch
import xarray as xr
from torch import Tensor

from layerlens.analysis.measure import measure_batch
from layerlens.analysis.plan import Plan
from layerlens.analysis.row_sample import draw_rows
from layerlens.models import Generation, LensModel, generate_responses
from layerlens.prompts.sample import Sample
from layerlens.results import SampleResult, sample_dataset
from layerlens.storage.manifest import make_manifest


@dataclass(frozen=True)
class Job:
    """One analysis: what to do with which samples, and in which fixed batches."""

    model: LensModel
    samples: Sequence[Sample]
    plan: Plan
    generate: Generation | None
    batch_tokens: int
    tokens_per_sample: int | Literal["auto"] | None = None
    precision: float | None = None

    @property
    def batches(self) -> list[list[int]]:
        """Sample numbers in order, as many to a batch as fit `batch_tokens` when padded; at least one."""
        new = self.generate.max_new_tokens if self.generate else 0
        batches: list[list[int]] = []
        width = 0
        for index, sample in enumerate(self.samples):
            length = len(sample.token_ids) + (0 if sample.has_response else new)
            width = max(width, length)
            if not batches or width * (len(batches[-1]) + 1) > self.batch_tokens:
                batches.append([])
                width = length
            batches[-1].append(index)
        return batches

    def run(
        self, batch: Sequence[int], wanted: Sequence[int], tokens: int | None, earlier: Sequence[xr.Dataset] | None, advance: Any
    ) -> Iterator[tuple[int, xr.Dataset]]:
        """Runs a batch, and gives the results of the samples in it that are wanted.

        Args:
            tokens: decode up to so many response tokens of each sample; None decodes every row.
            earlier: the batch with half of them decoded, to which the others are added; None begins.
        """
        samples = self._texts(batch, earlier)
        rows = [self._rows(sample) for sample in samples]
        draws = [self._draw(*each, tokens) for each in zip(batch, samples, rows, strict=True)]
        new = [drawn for drawn, _ in draws]
        if earlier is not None and tokens is not None:
            before = [self._draw(*each, tokens // 2)[0] for each in zip(batch, samples, rows, strict=True)]
            new = [np.setdiff1d(now, then) for now, then in zip(new, before, strict=True)]
        measured = self._measure(batch, samples, rows, new, whole=earlier is None)
        advance(len(wanted), sum(len(sample.token_ids) for sample in samples))
        for place, index in enumerate(batch):
            if index in wanted:
                values = measured[place] if earlier is None else _merge(earlier[place], new[place], measured[place])
                yield index, sample_dataset(self._result(index, samples[place], *draws[place], values), self._attrs(tokens))

    def _texts(self, batch: Sequence[int], earlier: Sequence[xr.Dataset] | None) -> list[Sample]:
        """The samples with their responses: those that an earlier round has drawn, or drawn now."""
        samples = [self.samples[index] for index in batch]
        if self.generate is None:
            return samples
        if earlier is None:
            return generate_responses(self.model, samples, self.generate, batch)
        ids = [str(sample["sample_token_ids"].values[0]).split() for sample in earlier]
        return [replace(sample, token_ids=[int(i) for i in text]) for sample, text in zip(samples, ids, strict=True)]

    def _draw(self, index: int, sample: Sample, rows: Tensor, tokens: int | None) -> tuple[np.ndarray, np.ndarray | None]:
        """The rows to decode, and how many each stands for."""
        return (rows.numpy(), None) if tokens is None else draw_rows(rows.numpy(), sample.in_response[rows.numpy()], tokens, index)

    def _measure(
        self, batch: Sequence[int], samples: Sequence[Sample], rows: Sequence[Tensor], new: Sequence[np.ndarray], whole: bool
    ) -> list[Mapping[str, np.ndarray]]:
        """The metrics at the new rows of each sample, with those of the whole text if wanted; texts without new rows do not run."""
        active = [place for place in range(len(batch)) if len(new[place])]
        plan = self.plan if whole else replace(self.plan, metrics=tuple(name for name in self.plan.metrics if name != "similarity"))
        parts: list[Mapping[str, np.ndarray]] = [{} for _ in batch]
        if active:
            ids = [torch.tensor(samples[place].token_ids) for place in active]
            keep = [torch.from_numpy(new[place]) for place in active]
            names = [samples[place].name for place in active]
            for place, part in zip(
                active, measure_batch(self.model, ids, keep, plan, names, [rows[place] for place in active]), strict=True
            ):
                parts[place] = part
        return parts

    def manifest(self) -> dict[str, Any]:
        model, config = self.model, self.model.parts.model.config
        digest = hashlib.sha256()
        for sample in self.samples:
            digest.update(f"{sample.token_ids} {sample.response_start} {sample.id} {sample.ground_truth}\n".encode())
        return make_manifest(
            model={
                "name": model.name,
                "revision": model.revision,
                "fingerprint": model.fingerprint,
                "architecture": config.model_type,
                "dtype": str(model.parts.dtype).removeprefix("torch."),
                "n_layers": model.n_layers,
                "d_model": model.parts.unembedding.shape[1],
                "vocabulary": model.parts.unembedding.shape[0],
            },
            config={
                **asdict(self.plan),
                "sites": list(self.plan.sites),
                "layers": list(self.plan.layers),
                "metrics": list(self.plan.metrics),
                "generate": asdict(self.generate) if self.generate else None,
                **({} if self.tokens_per_sample is None else {"tokens_per_sample": self.tokens_per_sample, "precision": self.precision}),
            },
            samples={"count": len(self.samples), "digest": digest.hexdigest()[:16]},
            batch_tokens=self.batch_tokens,
        )

    def _attrs(self, tokens: int | None) -> Mapping[str, Any]:
        attrs = {"model": self.model.name, "norm": self.plan.norm, "temperature": self.plan.temperature, "rows": self.plan.rows}
        more = {"kl_from_layer": self.plan.kl_from_layer, "tokens_per_sample": tokens}
        return {**attrs, **{name: value for name, value in more.items() if value is not None}}

    def _rows(self, sample: Sample) -> Tensor:
        position = torch.arange(len(sample.token_ids))
        return position if self.plan.rows == "all" else position[torch.from_numpy(sample.in_response)]

    def _result(
        self, index: int, sample: Sample, rows: np.ndarray, weight: np.ndarray | None, values: Mapping[str, np.ndarray]
    ) -> SampleResult:
        ids = np.asarray(sample.token_ids)[rows]
        tokenizer = self.model.tokenizer
        text = [str(i) for i in ids] if tokenizer is None else [tokenizer.decode([i]) for i in ids.tolist()]
        return SampleResult(
            index=index,
            id=sample.name,
            position=rows,
            token_id=ids,
            token_text=text,
            in_response=sample.in_response[rows],
            layers=self.plan.layers,
            sites=self.plan.sites,
            modules=self.plan.modules,
            text="" if tokenizer is None else tokenizer.decode(list(sample.token_ids)),
            ground_truth=sample.ground_truth or "",
            weight=weight,
            token_ids=sample.token_ids,
            response_start=sample.response_start,
            values=values,
        )


def _merge(earlier: xr.Dataset, new: np.ndarray, values: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Everything that is known of a sample: its earlier rows and the new ones, by position, and what is of the whole text."""
    known = {str(name): variable for name, variable in earlier.data_vars.items()}
    order = np.concatenate([earlier["position"].values, new]).argsort()
    return {
        name: np.concatenate([variable.values, values[name]])[order] if "token" in variable.dims and values else variable.values
        for name, variable in known.items()
    }
