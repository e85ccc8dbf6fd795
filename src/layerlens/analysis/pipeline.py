"""Prompts to a Run, as a stream: sample responses, run the model with hooks, decode what passes, keep a few numbers each."""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Literal

from layerlens.analysis.batches import Job
from layerlens.analysis.plan import Plan
from layerlens.analysis.stopping import resolve_draw, until_stopped
from layerlens.errors import PromptError, SelectionError
from layerlens.models import Generation, LensModel, require_fits_context
from layerlens.progress import progress_bar
from layerlens.prompts.sample import Sample, named
from layerlens.results import Run, RunFolder, RunMemory, join_samples
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
    tokens_per_sample: int | Literal["auto"] | None = None,
    precision: float | None = None,
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
        tokens_per_sample: decode at most so many response rows of each sample (and, with rows="all", as many of its other rows),
            drawn at random without replacement: the draw depends on the sample's number alone, so it is the same in any batch,
            process and model. Means stay unbiased, with both weightings; intervals hold the error of the draw. Similarity is over
            all rows all the same, as it needs no vocabulary. "auto" doubles the draw until it is enough (see `precision`), every row
            is decoded, or all the rest would take less than a tenth off the interval because the samples differ too much.
        precision: what "auto" must reach: 95% intervals of mean entropy, at every layer and site, and of the modules' mean ΔS of at
            most this half-width, nats. By default one layer that `select_layer` chooses (or none) in 95% of resamples.
        generate: how to sample responses for prompts that have none; None analyses them as they stand.
        out: folder to keep the run in. A run that was stopped goes on where it was, several processes can fill one folder, and
            one that holds another configuration is refused. None keeps the run in memory alone.
        batch_tokens: padded tokens in one forward pass; it changes memory and speed, and results by no more than rounding.
        progress: whether to show a progress bar; by default where there is a terminal.

    Returns:
        The Run, complete. After "auto", `manifest["readout"]` says how many rows were decoded, by what rule, and what was reached.

    Raises:
        PromptError: no samples, or one that does not fit the model's context or vocabulary (before anything runs).
        SelectionError: an unknown site, layer, metric or norm, or "auto" without what it judges by.
        ReadoutError: NaN or infinite logits, naming sample, token, layer and site.
        RunError: `out` can not be used.
    """
    chosen = list(samples)
    if not chosen:
        raise PromptError("there are no samples to analyse")
    stranger = next((item for item in chosen if not isinstance(item, Sample)), None)
    if stranger is not None:
        raise PromptError(f"samples must be Samples, got {type(stranger).__name__}: read_prompts makes them of files and texts")
    chosen = named(chosen)
    if rows not in ("all", "response"):
        raise SelectionError(f"rows must be 'all' or 'response', got {rows!r}")
    if not temperature > 0:
        raise SelectionError(f"temperature must be above 0, got {temperature}")
    if kl_from_layer is not None:
        resolve_layers(kl_from_layer, model.n_layers)
    if top_k < 0:
        raise SelectionError(f"top_k must be 0 or more, got {top_k}")
    require_fits_context(model, chosen, 0 if generate is None else generate.max_new_tokens)
    if rows == "response":
        silent = next((sample for sample in chosen if not sample.in_response.any() and (sample.has_response or generate is None)), None)
        if silent is not None:
            raise PromptError(f"prompt {silent.name} has no response token to decode; pass generate= or rows='all'")
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
    draw = resolve_draw(tokens_per_sample, precision, plan, model.n_layers)
    job = Job(model, chosen, plan, generate, batch_tokens, draw, precision)
    store: RunFolder | RunMemory = RunMemory(job.manifest()) if out is None else RunFolder.create(out, job.manifest())

    def filled(tokens: int | None) -> Run | None:
        title = f"analysing {model.name}" + (f", {tokens} tokens per sample" if tokens else "")
        with progress_bar(title, len(chosen), "tokens", progress) as advance:
            _fill(store, job, tokens, advance)
        parts = [store.read(index) for index in range(len(chosen))]
        # where another process has gone on to the next round, it has judged this one already
        further = tokens is not None and any(part.attrs["tokens_per_sample"] > tokens for part in parts)
        return None if further else Run(join_samples(parts), store.manifest(), store.path)

    if draw != "auto":
        run = filled(draw)
        assert run is not None
        return run
    run, readout = until_stopped(filled, precision)
    store.conclude(readout=readout)
    return Run(run.data, store.manifest(), store.path)


def _fill(store: RunFolder | RunMemory, job: Job, tokens: int | None, advance: Any) -> None:
    """Works through the batches that nobody has done and nobody else is doing, until all samples are there.

    With `tokens`, until (up to) so many response tokens of each are decoded: half of them are there, or none.
    """

    def lacking(batch: Sequence[int]) -> list[int]:
        return [index for index in batch if not store.has(index, tokens)]

    waiting = list(enumerate(job.batches))
    for batch in job.batches:
        advance(len(batch) - len(lacking(batch)), 0)
    while waiting:
        left = []
        for number, batch in waiting:
            missing = lacking(batch)
            if not missing:
                continue
            with store.claim(number) as mine:
                if not mine:
                    left.append((number, batch))
                    continue
                missing = lacking(batch)
                if not missing:
                    continue
                earlier = [store.read(index) for index in batch] if all(map(store.has, batch)) and tokens else None
                # a batch is always run whole: its composition is part of what makes a resumed run bit-for-bit the same
                for index, result in job.run(batch, missing, tokens, earlier, advance):
                    store.write(index, result)
        if left and len(left) == len(waiting):
            time.sleep(WAIT_SECONDS)
        waiting = left
