"""Prompts to a Run: sample responses, run the model with hooks, decode what passes, keep a few numbers each."""

from __future__ import annotations

import platform
import warnings
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, get_args

import xarray as xr

from layerlens.analysis.batches import Analysis
from layerlens.analysis.given import checked_samples, require_assistant, require_response_rows, texts_of_run
from layerlens.analysis.plan import Plan
from layerlens.analysis.sampling import with_responses
from layerlens.analysis.shards import require_keepable, samples_of
from layerlens.analysis.spread import with_spread
from layerlens.analysis.state_memory import resolve_state_bytes
from layerlens.analysis.stopping import resolve_draw, run_until_stopped
from layerlens.decode.choose import processor_name, resolve_backend
from layerlens.errors import RunError, SelectionError
from layerlens.models import Convention, FittedLens, Generation, LensModel, require_fits_context
from layerlens.progress import Progress, progress_bar
from layerlens.prompts.sample import Sample
from layerlens.prompts.segments import resolve_marks
from layerlens.results import Run, RunFolder, RunMemory, Texts, join_samples, open_run
from layerlens.storage.launch import n_processes, rank
from layerlens.storage.reported_work import share_reported_work
from layerlens.types import SITES, Keep, Norm, Rows, SimilarityRows, resolve_layers, resolve_metrics


def analyze(
    model: LensModel,
    samples: Iterable[Sample] | Run | str | Path,
    *,
    sites: str | Iterable[str] = "all",
    layers: str | int | Iterable[int] = "all",
    metrics: str | Iterable[str] = "all",
    norm: Norm = "none",
    spread: float | None = None,
    lens: str | FittedLens = "logit",
    rows: Rows = "all",
    similarity_rows: SimilarityRows = "response",
    temperature: float = 1.0,
    kl_from_layer: int | None = None,
    top_k: int = 0,
    tokens_per_sample: int | Literal["auto"] | None = None,
    precision: float | None = None,
    generate: Generation | None = None,
    thinking_marks: Sequence[str] = (),
    sampling_batch: int | None = None,
    out: str | Path | None = None,
    keep: Keep = "rows",
    shard: tuple[int, int] | None = None,
    backend: str = "auto",
    batch_tokens: int = 8192,
    progress: bool | None = None,
) -> Run:
    """Measures internal policies at every layer and site of a model, over a set of samples.

    Args:
        model: from `load` or `LensModel.wrap`.
        samples: from `read_prompts`, or made by hand; or a complete run, or its folder, to read its texts again as they are: under
            another norm, or by another model that has the same tokenizer (a base model and its fine-tuned one on the SAME texts).
        sites: "all" (that the architecture has and the lens can read) or any of resid_pre, attn_in, attn_out, resid_mid, ffn_in,
            ffn_out, resid_post.
        layers: "all" or any of 1...L.
        metrics: "all" or any of entropy (with logit_sd), logp_next, kl_to_final, agrees, similarity, stream_cosine, state_norm
            (docs/definitions.md). Measured only if they are named, as in ("all", "js_to_final"), are js_to_final, kl_from_final,
            rank_next and renyi_2, which read the logits twice; settling_depth and deep_thinking_ratio stand for js_to_final, from
            which they follow.
        norm: "none" decodes states as they are (the paper), "final" through the model's final norm (the logit lens), "matched" scaled
            so that the logits of every state have one spread over the vocabulary: entropies then differ by shape alone.
        spread: that spread, in logits. By default it is the mean spread of the final policy's logits on the rows of this run, which
            takes one more forward pass of every text; the manifest stores it.
        lens: what carries a state to the final layer before it is read: "logit" leaves it where it is; a fitted lens, "jacobian:FILE"
            or "tuned:FOLDER" (docs/definitions.md, "Lenses"), goes with norm "final" and reads the residual stream and what modules add
            to it. One from `read_lens` is taken as it is.
        rows: "all", "response" to decode only the rows that predict a response token, or "reference" for those that the paper's code
            takes: from the second token after the prompt's "assistant" to the last position, which predicts nothing.
        similarity_rows: similarity and CKA are over response rows without position 0, the attention sink, which alone would decide
            CKA (in a text without a response: over all rows but position 0). "all" takes every row.
        temperature: divides the logits of every policy.
        kl_from_layer: also measure KL(π of this layer's resid_post ‖ π) at every layer and site.
        top_k: also keep this many of the most likely tokens at every layer and site.
        tokens_per_sample: decode at most this many response rows of each sample (and, with rows="all", at most as many of its
            other rows), drawn at random without replacement. The draw depends on the sample's number alone, so it is the same in
            any batch, process and model. Means stay unbiased under both weightings, and intervals include the error of the draw.
            Similarity is not drawn, since it needs no vocabulary. "auto" doubles the number until the goal is reached (see
            `precision`), until every row is decoded, or until decoding all other rows would narrow the interval by less than a
            tenth because the samples differ too much.
        precision: the goal of "auto": 95% intervals of mean entropy, at every layer and site, and of the modules' mean ΔS with
            at most this half-width, nats. By default the goal is that `select_layer` gives one answer in 95% of
            resamples of 8 or more problems.
        generate: how to sample responses for prompts without one; None analyses prompts as they stand. All responses are sampled before
            anything is measured, and their token ids are kept in `out`.
        sampling_batch: the largest number of responses to sample at once, which changes memory and speed, and texts by no more than
            rounding can. By default as many as fit half of the free memory, or what `out` was begun with.
        out: folder to keep the run in. A run that was stopped continues there, several processes can fill one folder, and a
            folder that holds another configuration is refused. None keeps the run in memory alone.
        keep: "means" keeps of each sample in `out` its means over every choice of rows, similarity and text, some kilobytes, but no
            row: curves, choice and comparison are as ever, figures of single tokens and `drop_first` are not to be had.
        shard: (i, n), with i from 1 to n: sample and measure the i-th of n equal parts of the samples alone, in a folder of its own, for
            jobs that share nothing. `merge` puts the folders together. Batches end where a part ends, so the merged run agrees with one
            of a single job to rounding.
        thinking_marks: the texts that open and close thinking in a response; by default those of the model's own format. They say
            which rows are of the segment "thinking" and which of "answer".
        backend: how the readout is computed, as in `decode.readout` (docs/speed.md). "auto" takes the backend that
            `out` was begun with, else the one that is fastest on this machine. The manifest stores its name; a pair such as
            "native-float32+torch-mm" names the backends of large and of small requests.
        batch_tokens: padded tokens in one forward pass that measures; the number changes memory and speed, and results by no more than
            rounding.
        progress: True draws a progress bar; by default it is drawn on a terminal, and elsewhere work of over half a minute prints a line
            every half minute. False shows nothing.

    Returns:
        The Run, complete. After "auto", `manifest.stopping` says how many rows were decoded, which rule stopped, and the width
        that was reached.

    Raises:
        PromptError: no samples, one that does not fit the model's context or vocabulary, or one without the rows asked for (before
            anything runs); thinking marks that are not two texts; texts of a run that the model's tokenizer reads otherwise, or that are
            to be sampled.
        SelectionError: an unknown site, layer, metric, norm or backend, a site that the architecture does not have, a backend that
            cannot be used here, or "auto" without the metrics and sites that its goal is judged by.
        ReadoutError: NaN or infinite logits, naming sample, token, layer and site.
        RunError: `out` cannot be used, or the run that is to be read is not complete.
    """
    given = texts_of_run(samples, model, generate) if isinstance(samples, Run | str | Path) else samples
    source = given.source if isinstance(given, Texts) else None
    thinking_marks = thinking_marks or (given.thinking_marks if isinstance(given, Texts) else ())
    chosen = checked_samples(given)
    convention = model.convention(norm, spread, lens)
    plan = _resolved_plan(
        model, convention, sites, layers, metrics, rows, similarity_rows, temperature, kl_from_layer, top_k, thinking_marks
    )
    draw = resolve_draw(tokens_per_sample, precision, plan, model.n_layers)
    require_fits_context(model, chosen, 0 if generate is None else generate.max_new_tokens)
    if rows != "all":
        require_response_rows(chosen, generate)
    require_keepable(keep, out, draw)
    measured = samples_of(shard, len(chosen), out, draw, norm == "matched" and spread is None)
    if rows == "reference":
        require_assistant(chosen, model)
    device = processor_name(model.parts.unembedding_weight.device)
    state_bytes = resolve_state_bytes(model.parts.unembedding_weight.device)
    analysis = Analysis(model, chosen, plan, convention, generate, batch_tokens, draw, precision, device, source, measured, state_bytes)
    analysis, store = _open_store(analysis, out, backend, keep)
    if (number := rank()) is not None:
        store.note_process(number, f"{model.device} ({device}) on {platform.node()}")
    left = [index for index in measured if not store.has(index)]
    processes = 1 if out is None else n_processes()  # what is kept in memory is shared with nobody
    if left and progress is not False:
        analysis.forecast(left, processes).announce(progress)
    if generate is not None:
        texts, sampled = with_responses(model, chosen, generate, store, sampling_batch, progress, measured)
        analysis = replace(analysis, samples=texts)
        if sampled is not None:
            store.amend(texts=sampled)
            if left and progress is not False:
                analysis.forecast(left, processes).announce(progress)
    if norm == "matched" and spread is None:
        with progress_bar(f"measuring the spread of {model.name}'s logits", len(chosen), "tokens", progress) as report:
            analysis = with_spread(analysis, store, report)

    def run_round(tokens: int | None) -> Run | None:
        title = f"measuring {model.name}" + (f", {tokens} tokens per sample" if tokens else "")
        with progress_bar(title, len(measured), "tokens", progress) as report:
            _fill(store, analysis, tokens, report)
        if draw != "auto":
            return store.run() if isinstance(store, RunMemory) else open_run(store.path)
        parts = [store.read(index) for index in range(len(chosen))]
        # if another process has gone on to the next round, it has judged this one already
        further = tokens is not None and any(part.attrs["tokens_per_sample"] > tokens for part in parts)
        return None if further else Run(join_samples(parts), store.manifest(), store.path)

    if draw != "auto":
        run = run_round(draw)
        assert run is not None
        return run
    run, stopping = run_until_stopped(run_round, precision)
    store.amend(stopping=stopping)
    return Run(run.data, store.manifest(), store.path)


def _resolved_plan(
    model: LensModel, convention: Convention, sites: Any, layers: Any, metrics: Any, rows: Rows, similarity_rows: SimilarityRows,
    temperature: float, kl_from_layer: int | None, top_k: int, thinking_marks: Sequence[str],
) -> Plan:  # fmt: skip
    """What to measure, every argument of `analyze` checked. Raises SelectionError on one that makes no sense."""
    if rows not in get_args(Rows):
        raise SelectionError(f"rows must be 'response', 'all' or 'reference', got {rows!r}")
    if similarity_rows not in get_args(SimilarityRows):
        raise SelectionError(f"similarity_rows must be 'response' or 'all', got {similarity_rows!r}")
    if not temperature > 0:
        raise SelectionError(f"temperature must be above 0, got {temperature}")
    if kl_from_layer is not None:
        convention.require_readable(resolve_layers(kl_from_layer, model.n_layers), ["resid_post"])
    if top_k < 0:
        raise SelectionError(f"top_k must be 0 or more, got {top_k}")
    names = resolve_metrics(metrics)
    chosen = resolve_layers(layers, model.n_layers)
    read = convention.readable_sites(chosen) if isinstance(sites, str) and sites == "all" else model.resolve_sites(sites)
    convention.require_readable(chosen, read)
    return Plan(
        sites=read,
        layers=chosen,
        metrics=resolve_metrics((*names, "logit_sd") if "entropy" in names else names),
        norm=convention.norm,
        rows=rows,
        temperature=temperature,
        kl_from_layer=kl_from_layer,
        top_k=top_k,
        thinking_marks=resolve_marks(thinking_marks, model.tokenizer),
        absent_sites=tuple(site for site in SITES if site not in model.sites),
        similarity_rows=similarity_rows,
        spread=convention.spread,
        lens=convention.lens_name,
        lens_fingerprint=None if convention.lens is None else convention.lens.fingerprint,
    )


def _open_store(analysis: Analysis, out: str | Path | None, backend: str, keep: Keep) -> tuple[Analysis, RunFolder | RunMemory]:
    """The analysis with a concrete backend, and where its results go. "auto" is the backend of a folder that was begun."""
    if out is None:
        analysis = _with_backend(analysis, backend)
        return analysis, RunMemory(analysis.manifest())
    folder = RunFolder(out)
    begun_with = folder.backend()
    analysis = _with_backend(analysis, begun_with or backend if backend == "auto" else backend)
    try:
        folder = RunFolder.begin(out, replace(analysis.manifest(), keep=keep))
    except RunError:
        # another process may have begun the folder meanwhile, with what is fastest on its machine
        if backend != "auto" or folder.backend() in (None, analysis.plan.backend):
            raise
        analysis = _with_backend(analysis, str(folder.backend()))
        folder = RunFolder.begin(out, replace(analysis.manifest(), keep=keep))
    begun = folder.manifest()
    analysis, device = replace(analysis, state_bytes=begun.state_bytes or analysis.state_bytes), begun.device
    if device != analysis.device:
        warnings.warn(
            f"{folder.path} was begun on {device}; what {analysis.device} adds agrees with it to rounding, not to the last bit",
            stacklevel=3,
        )
    return analysis, folder


def _with_backend(analysis: Analysis, backend: str) -> Analysis:
    plan, model = analysis.plan, analysis.model
    concrete = resolve_backend(
        model.unembedding(plan.temperature), model.parts.dtype, want=plan.readout_fields, top_k=plan.top_k, backend=backend
    )
    return replace(analysis, plan=replace(plan, backend=concrete))


def _fill(store: RunFolder | RunMemory, analysis: Analysis, tokens: int | None, report: Progress) -> None:
    """Works through the batches, shared with all processes that fill the folder, until their samples are there.

    With `tokens`, until (up to) that many response tokens of each are decoded; half of them are already, or none.

    A thread writes the samples of a batch while the next one is measured. The batch's claim ends when they are written, and what goes
    wrong with that is raised here, once the batch after it is measured and written too.
    """

    def lacking(batch: Sequence[int]) -> list[int]:
        return [index for index in batch if not store.has(index, tokens)]

    def write(results: Sequence[tuple[int, xr.Dataset]]) -> None:
        for index, result in results:
            store.write(index, result)

    def run(piece: tuple[int, list[int]]) -> Callable[[], None]:
        _, batch = piece
        earlier = [store.read(index) for index in batch] if tokens and all(map(store.has, batch)) else None
        return writer.submit(write, list(analysis.run(batch, lacking(batch), tokens, earlier, report))).result

    with ThreadPoolExecutor(1, thread_name_prefix="layerlens-writer") as writer:
        share_reported_work(
            list(enumerate(analysis.batches)),
            report,
            claim=lambda piece: store.claim(f"{piece[0]:06d}"),
            size=lambda piece: len(piece[1]),
            lacking=lambda piece: len(lacking(piece[1])),
            work=run,
        )
