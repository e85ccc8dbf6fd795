"""`layerlens analyze`: a model and prompts to a run folder."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from layerlens.cli.options import (
    AsJson,
    LibraryOption,
    ModelName,
    ModelOptions,
    PromptOptions,
    SamplingOptions,
    grouped,
    named_options,
    parse_count,
    parse_layers,
    parse_names,
    parse_shard,
    print_json,
)
from layerlens.errors import SelectionError
from layerlens.types import METRICS, Keep, Norm, Rows, SimilarityRows, resolve_metrics, resolve_sites

LONGEST_RESPONSE = 1024
"""The most tokens of a response if the user names no number."""


@grouped
def analyze_command(
    model: ModelName,
    prompts: Annotated[
        str,
        typer.Argument(
            metavar="PROMPTS",
            help="A .parquet (verl's layout), .jsonl (prompt or messages, optional response) or .txt file (a prompt per line), texts that "
            "inspect_ai (.eval), lm-evaluation-harness (`samples_*.jsonl`) or lighteval (`details_*.parquet`) sampled, "
            "a dataset on the hub (owner/name), 'arithmetic' for the bundled problems, or the folder of a finished run, whose texts are "
            "read again as they are: under another norm, or by another model with the same tokenizer.",
        ),
    ],
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder of the run. The same command continues a run that was stopped.")],
    *,
    limit: Annotated[
        int | None, typer.Option(help="Read this many prompts at most, from the start.", min=1, rich_help_panel="Prompts")
    ] = None,
    reading: Annotated[PromptOptions, "Prompts"],
    generate: Annotated[
        bool,
        typer.Option(
            "--generate/--no-generate",
            help="Sample a response to prompts that have none, or analyse the prompts alone.",
            rich_help_panel="Responses",
        ),
    ] = True,
    max_new_tokens: Annotated[int, typer.Option(help="Longest response, in tokens.", min=1, rich_help_panel="Responses")] = (
        LONGEST_RESPONSE
    ),
    sampling: Annotated[SamplingOptions, "Responses"],
    sampling_batch: Annotated[
        int | None,
        typer.Option(
            help="Responses to sample at once. [default: as many as fit half of the free memory]",
            min=1,
            rich_help_panel="Responses",
            show_default=False,
        ),
    ] = None,
    engine: Annotated[
        Literal["transformers", "vllm"],
        typer.Option(
            help="What samples responses. vllm samples all of them, is closed, and the model is loaded again to be measured "
            "(layerlens-policy[vllm]; not run by the authors).",
            rich_help_panel="Responses",
        ),
    ] = "transformers",
    tensor_parallel: Annotated[
        int, typer.Option(help="Number of GPUs that vLLM spreads the model over.", min=1, rich_help_panel="Responses")
    ] = 1,
    thinking_marks: Annotated[
        tuple[str, str] | None,
        typer.Option(
            help="The texts that open and close thinking in a response. [default: those of the model's own format]",
            metavar="OPEN CLOSE",
            rich_help_panel="Responses",
            show_default=False,
        ),
    ] = None,
    keep: Annotated[
        Keep,
        typer.Option(
            help="Keep every row of a sample, or its means alone: enough for curves, choice and comparison, at a hundredth of the size.",
            rich_help_panel="Run folder",
        ),
    ] = "rows",
    shard: Annotated[
        str | None,
        typer.Option(
            help="Measure the i-th of n parts alone, for jobs of an array; `layerlens merge` puts them together. On machines of "
            "different kinds name one --backend for all. [default: the whole; "
            "with auto: $SLURM_ARRAY_TASK_ID of $SLURM_ARRAY_TASK_COUNT]",
            metavar="i/n|auto",
            rich_help_panel="Run folder",
            show_default=False,
        ),
    ] = None,
    norm: Annotated[
        Norm,
        typer.Option(
            help="none: states as they are (the BuPO paper); final: through the final norm (logit lens); matched: scaled to one spread of "
            "logits, so that entropies differ by shape alone.",
            rich_help_panel="Measurement",
        ),
    ] = "none",
    spread: Annotated[
        float | None,
        typer.Option(
            help="With matched: that spread, in logits. [default: the mean of the final policy's logits on the rows of the run]",
            rich_help_panel="Measurement",
            show_default=False,
        ),
    ] = None,
    lens: Annotated[
        str,
        typer.Option(
            help="logit: states as they are; jacobian:FILE or tuned:FOLDER: carried to the final layer by a fitted lens, with --norm final "
            "(`layerlens fit-lens` makes one).",
            rich_help_panel="Measurement",
        ),
    ] = "logit",
    sites: Annotated[
        str,
        typer.Option(
            help="all, or some of resid_pre, attn_in, attn_out, resid_mid, ffn_in, ffn_out, resid_post, separated by commas.",
            rich_help_panel="Measurement",
        ),
    ] = "all",
    layers: Annotated[str, typer.Option(help="all, or like 1-6,12 (counted from 1).", rich_help_panel="Measurement")] = "all",
    metrics: Annotated[
        str,
        typer.Option(
            help=f"all, or some of {', '.join(METRICS)}, separated by commas; only on request (all,js_to_final): js_to_final, which gives "
            "settling depth and deep-thinking ratio, kl_from_final, rank_next, renyi_2.",
            rich_help_panel="Measurement",
        ),
    ] = "all",
    rows: Annotated[
        Rows,
        typer.Option(
            help="Decode all rows, those that predict a response token, or those of the paper's code (reference).",
            rich_help_panel="Measurement",
        ),
    ] = "all",
    similarity_rows: Annotated[
        SimilarityRows,
        typer.Option(
            help="Rows of similarity and CKA: response rows without the attention sink at position 0, or all rows.",
            rich_help_panel="Measurement",
        ),
    ] = "response",
    top_k: Annotated[
        int,
        typer.Option(help="Also keep this many of the most likely tokens at every layer and site.", min=0, rich_help_panel="Measurement"),
    ] = 0,
    kl_from_layer: Annotated[
        int | None, typer.Option(help="Also measure KL from this layer's policy to all others.", rich_help_panel="Measurement")
    ] = None,
    tokens_per_sample: Annotated[
        str | None,
        typer.Option(
            help="Decode at most this many response tokens of each sample, drawn at random; auto: doubled until the chosen layer is stable "
            "(or --precision is reached), or more of them cannot help.",
            metavar="N|auto",
            rich_help_panel="Measurement",
            show_default=False,
        ),
    ] = None,
    precision: Annotated[
        float | None,
        typer.Option(
            help="With auto: half-width of the 95% intervals of mean entropy and ΔS to reach, nats.",
            rich_help_panel="Measurement",
            show_default=False,
        ),
    ] = None,
    backend: Annotated[
        str,
        typer.Option(
            help="How policies are decoded: torch, compile or native on a CPU, workspace or triton on a GPU, or a variant of these "
            "(docs/speed.md); auto: what is fastest here, or what the run folder was begun with.",
            rich_help_panel="Measurement",
        ),
    ] = "auto",
    loading: ModelOptions,
    library: LibraryOption = "transformers",
    batch_tokens: Annotated[
        int, typer.Option(help="Padded tokens in one forward pass that measures: memory against speed.", min=1, rich_help_panel="Model")
    ] = 8192,
    as_json: AsJson = False,
) -> None:
    """Measure a model's internal policies at every layer and module, into a run folder.

    Example: layerlens analyze Qwen/Qwen3-4B math500.parquet --limit 100 --no-thinking --out runs/qwen3-4b
    """
    import layerlens as ll
    from layerlens.evaluate import sample_with_vllm
    from layerlens.prompts.records import prompt_file
    from layerlens.results import texts_of
    from layerlens.storage.bundled import bundled_prompts

    source = bundled_prompts() if prompts == "arithmetic" else prompts
    reads_run = (Path(prompts).expanduser() / "run.json").is_file()
    of_sampling = [
        *named_options(sampling),
        *(["--max-new-tokens"] if max_new_tokens != LONGEST_RESPONSE else []),
        *(["--sampling-batch"] if sampling_batch is not None else []),
        *(["--engine"] if engine != "transformers" else []),
    ]
    if reads_run:
        _refuse([*named_options(reading), *of_sampling], f"{prompts} is a run, whose texts are read again as they are")
    if not generate:
        _refuse(of_sampling, "--no-generate samples no responses")
    if engine != "vllm" and tensor_parallel > 1:
        _refuse(["--tensor-parallel"], "only vLLM spreads a model so (--engine vllm; else --device-map auto)")
    generation = sampling.generation(max_new_tokens) if generate and not reads_run else None
    # what is wrong with these is said before weights are loaded
    wanted: dict[str, Any] = {"sites": parse_names(sites), "layers": parse_layers(layers), "metrics": parse_names(metrics)}
    resolve_sites(wanted["sites"])
    resolve_metrics(wanted["metrics"])
    wanted |= {"tokens_per_sample": parse_count(tokens_per_sample), "shard": parse_shard(shard)}
    if not reads_run:
        prompt_file(source)
    loads = loading.keywords()
    samples: Any = None
    if not reads_run:
        reading = reading.since(out / "texts" / "texts.json", out / "run.json")
        reading.warn_of_training(model)
    if engine == "vllm" and generation is not None:
        samples = sample_with_vllm(
            model, lambda reader: reading.read(source, reader, limit), generation, out,
            batch=sampling_batch, tensor_parallel=tensor_parallel, **loads,
        )  # fmt: skip
    loaded = ll.load(model, **loads, backend=library)
    if reads_run:
        samples = texts_of(ll.open_run(prompts, variables=[]), loaded.tokenizer, loaded.name).first(limit)
    elif samples is None:
        samples = reading.read(source, loaded, limit)
    run = ll.analyze(
        loaded,
        samples,
        **wanted,
        norm=norm,
        spread=spread,
        lens=lens,
        rows=rows,
        similarity_rows=similarity_rows,
        top_k=top_k,
        kl_from_layer=kl_from_layer,
        precision=precision,
        out=out,
        keep=keep,
        backend=backend,
        batch_tokens=batch_tokens,
        generate=generation,
        sampling_batch=sampling_batch,
        thinking_marks=thinking_marks or (),
    )
    tokens = run.n_rows
    what = f"{run.n_samples} samples, {tokens:,} tokens, {len(run.layers)} layers, {len(run.sites)} sites, norm {run.convention}"
    stopping = run.manifest.stopping
    if as_json:
        answer = {"run": str(out), "model": run.model, "samples": run.n_samples, "tokens": tokens, "layers": run.n_layers, "norm": run.norm}
        print_json(answer if stopping is None else {**answer, "stopping": asdict(stopping)})
    else:
        print(f"{run.model}: {what} -> {out}")
        if stopping is not None:
            spent = f"{stopping.rows_decoded:,} of {stopping.rows:,} tokens decoded, up to {stopping.tokens_per_sample} per sample"
            print(f"{spent}: {stopping.reason}")
        print(f"next: layerlens plot {out}   layerlens select {out}")


def _refuse(options: list[str], why: str) -> None:
    """Raises SelectionError if options were named that would change nothing."""
    if options:
        raise SelectionError(f"{why}: leave out {', '.join(options)}")
