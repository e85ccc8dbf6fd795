"""Prompts to a Run, as a stream: sample responses, run the model with hooks, decode what passes, keep a few numbers each."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import xarray as xr
from torch import Tensor

from layerlens.errors import PromptError, SelectionError
from layerlens.generation import Generation, generate_responses, require_room
from layerlens.lens import LensModel
from layerlens.measure import Plan, measure_batch
from layerlens.progress import progress_bar
from layerlens.prompts import Sample
from layerlens.results import Run, RunFolder, SampleResult, join_samples, make_manifest, sample_dataset
from layerlens.types import Norm, Rows, resolve_layers, resolve_metrics, resolve_norm, resolve_sites

WAIT_SECONDS = 0.2
"""How often to look again for batches that another process is working on."""


def analyze(
    model: LensModel,
    samples: Iterable[Sample],
    *,
    sites: str | Iterable[str] = "all",
    layers: str | int | Iterable[int] = "all",
    metrics: str | Iterable[str] = "all",
    norm: Norm = "none",
    rows: Rows = "all",
    temperature: float = 1.0,
    kl_from_layer: int | None = None,
    top_k: int = 0,
    generate: Generation | None = None,
    out: str | Path | None = None,
    batch_tokens: int = 8192,
    progress: bool | None = None,
) -> Run:
    """Measures internal policies at every layer and site of a model, over a set of samples.

    Args:
        model: from `load` or `LensModel.wrap`.
        samples: from `read_prompts`, or made by hand.
        sites: "all" or any of resid_pre, attn_in, attn_out, resid_mid, ffn_in, ffn_out, resid_post.
        layers: "all" or any of 1...L.
        metrics: "all" or any of entropy, logp_next, kl_to_final, agrees, similarity, stream_cosine (DEFINITIONS, "Metrics").
        norm: "none" decodes states as they are (the paper), "final" through the model's final norm (the logit lens).
        rows: "all", or "response" to decode only the rows that predict a response token.
        temperature: divides the logits of every policy.
        kl_from_layer: also measure KL(π of this layer's resid_post ‖ π) everywhere.
        top_k: also keep so many of the most likely tokens everywhere.
        generate: how to sample responses for prompts that have none; None analyses them as they stand.
        out: folder to keep the run in. A run that was stopped goes on where it was, several processes can fill one folder, and
            one that holds another configuration is refused. None keeps the run in memory alone.
        batch_tokens: padded tokens in one forward pass; it changes memory and speed, and results by no more than rounding.
        progress: whether to show a progress bar; by default where there is a terminal.

    Returns:
        The Run, complete.

    Raises:
        PromptError: no samples, or one that does not fit the model's context or vocabulary (before anything runs).
        SelectionError: an unknown site, layer, metric or norm.
        ReadoutError: NaN or infinite logits, naming sample, token, layer and site.
        RunError: `out` can not be used.
    """
    chosen = list(samples)
    if not chosen:
        raise PromptError("there are no samples to analyse")
    stranger = next((item for item in chosen if not isinstance(item, Sample)), None)
    if stranger is not None:
        raise PromptError(f"samples must be Samples, got {type(stranger).__name__}: read_prompts makes them of files and texts")
    if rows not in ("all", "response"):
        raise SelectionError(f"rows must be 'all' or 'response', got {rows!r}")
    if not temperature > 0:
        raise SelectionError(f"temperature must be above 0, got {temperature}")
    if kl_from_layer is not None:
        resolve_layers(kl_from_layer, model.n_layers)
    if top_k < 0:
        raise SelectionError(f"top_k must be 0 or more, got {top_k}")
    require_room(model, chosen, 0 if generate is None else generate.max_new_tokens)
    if rows == "response":
        silent = next(
            (i for i, sample in enumerate(chosen) if not _in_response(sample).any() and (sample.has_response or generate is None)), None
        )
        if silent is not None:
            raise PromptError(f"prompt {_name(silent, chosen[silent])} has no response token to decode; pass generate= or rows='all'")
    plan = Plan(
        sites=resolve_sites(sites),
        layers=resolve_layers(layers, model.n_layers),
        metrics=resolve_metrics(metrics),
        norm=resolve_norm(norm),
        rows=rows,
        temperature=temperature,
        kl_from_layer=kl_from_layer,
        top_k=top_k,
    )
    job = _Job(model, chosen, plan, generate, batch_tokens)
    if out is None:
        with progress_bar(f"analysing {model.name}", len(chosen), "tokens", progress) as advance:
            done = [result for batch in job.batches for result in job.run(batch, advance)]
        return Run(join_samples(done), job.manifest())
    folder = RunFolder.create(out, job.manifest())
    with progress_bar(f"analysing {model.name}", len(chosen), "tokens", progress) as advance:
        _fill(folder, job, advance)
    return Run(join_samples([folder.read(index) for index in range(len(chosen))]), folder.manifest(), folder.path)


def _fill(folder: RunFolder, job: _Job, advance: Any) -> None:
    """Works through the batches that nobody has done and nobody else is doing, until all samples are there."""
    waiting = list(enumerate(job.batches))
    for batch in job.batches:
        advance(sum(folder.has(index) for index in batch), 0)
    while waiting:
        left = []
        for number, batch in waiting:
            missing = [index for index in batch if not folder.has(index)]
            if not missing:
                continue
            with folder.claim(number) as mine:
                if not mine:
                    left.append((number, batch))
                    continue
                missing = [index for index in batch if not folder.has(index)]
                if not missing:
                    continue
                # a batch is always run whole: its composition is part of what makes a resumed run bit-for-bit the same
                for index, result in zip(batch, job.run(batch, advance, len(missing)), strict=True):
                    if index in missing:
                        folder.write(index, result)
        if left and len(left) == len(waiting):
            time.sleep(WAIT_SECONDS)
        waiting = left


@dataclass(frozen=True)
class _Job:
    """One analysis: what to do with which samples, and in which fixed batches."""

    model: LensModel
    samples: Sequence[Sample]
    plan: Plan
    generate: Generation | None
    batch_tokens: int

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

    def run(self, batch: Sequence[int], advance: Any, count: int | None = None) -> Iterator[xr.Dataset]:
        samples = [self.samples[index] for index in batch]
        if self.generate is not None:
            samples = generate_responses(self.model, samples, self.generate, batch)
        ids = [torch.tensor(sample.token_ids) for sample in samples]
        keep = [self._rows(sample) for sample in samples]
        measured = measure_batch(self.model, ids, keep, self.plan, [_name(index, self.samples[index]) for index in batch])
        advance(len(batch) if count is None else count, sum(len(sample.token_ids) for sample in samples))
        for index, sample, rows, values in zip(batch, samples, keep, measured, strict=True):
            yield sample_dataset(self._result(index, sample, rows, values), self._attrs())

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
            },
            samples={"count": len(self.samples), "digest": digest.hexdigest()[:16]},
            batch_tokens=self.batch_tokens,
        )

    def _attrs(self) -> Mapping[str, Any]:
        attrs = {"model": self.model.name, "norm": self.plan.norm, "temperature": self.plan.temperature, "rows": self.plan.rows}
        return attrs if self.plan.kl_from_layer is None else {**attrs, "kl_from_layer": self.plan.kl_from_layer}

    def _rows(self, sample: Sample) -> Tensor:
        position = torch.arange(len(sample.token_ids))
        return position if self.plan.rows == "all" else position[_in_response(sample)]

    def _result(self, index: int, sample: Sample, rows: Tensor, values: Mapping[str, np.ndarray]) -> SampleResult:
        ids = np.asarray(sample.token_ids)[rows.numpy()]
        tokenizer = self.model.tokenizer
        text = [str(i) for i in ids] if tokenizer is None else [tokenizer.decode([i]) for i in ids.tolist()]
        return SampleResult(
            index=index,
            id=_name(index, sample),
            position=rows.numpy(),
            token_id=ids,
            token_text=text,
            in_response=_in_response(sample)[rows].numpy(),
            layers=self.plan.layers,
            sites=self.plan.sites,
            modules=self.plan.modules,
            text="" if tokenizer is None else tokenizer.decode(list(sample.token_ids)),
            ground_truth=sample.ground_truth or "",
            values=values,
        )


def _name(index: int, sample: Sample) -> str:
    return str(index) if sample.id is None else sample.id


def _in_response(sample: Sample) -> Tensor:
    """Whether the token that each row predicts is there and belongs to the response."""
    predicted = torch.arange(len(sample.token_ids)) + 1
    return (predicted >= sample.response_start) & (predicted < len(sample.token_ids))
