"""What was measured: a run's model, convention, samples and machine, and the command that measures it again."""

from __future__ import annotations

import shlex
from dataclasses import fields

import numpy as np

from layerlens.results import Run
from layerlens.storage.manifest import AnalysisConfig
from layerlens.types import METRICS

DEFAULT = {field.name: field.default for field in fields(AnalysisConfig)}


def facts(run: Run) -> list[tuple[str, str]]:
    """Labels and values of a run, in the order in which a reader asks."""
    model, config, data = run.manifest.model, run.manifest.config, run.data
    rows = {"all": "all rows", "response": "rows that predict the response", "reference": "the rows of the paper's code"}[config.rows]
    size = [f"{model.n_layers} layers" if model.n_layers else "", f"d = {model.d_model}" if model.d_model else ""]
    size += [f"vocabulary of {model.vocabulary:,}" if model.vocabulary else ""]
    decoded = f"{run.n_rows:,} of {data.sizes.get('text_token', run.n_rows):,} tokens"
    drawn = f", up to {run.tokens_per_sample} of each response" if run.tokens_per_sample else ""
    sampling = config.generate
    found = {
        "model": f"{model.name}{f' at {model.revision}' if model.revision else ''}",
        "architecture": ", ".join(filter(None, [model.architecture or "", *size])),
        "weights": f"{model.dtype}{f', {model.quantisation}' if model.quantisation else ''}",
        "norm": run.convention,
        "lens": f"{run.lens} lens" + (f" from {run.manifest.lens_file}" if run.manifest.lens_file else ""),
        "temperature of the policies": f"{config.temperature:g}",
        "samples": f"{run.n_samples} of {run.manifest.samples.count}"
        + (f", answers to {len(np.unique(run.problems))} problems" if len(np.unique(run.problems)) < run.n_samples else ""),
        "rows": f"{decoded} ({rows}{drawn})",
        "sites": ", ".join(run.sites),
        "responses": f"sampled: up to {sampling.max_new_tokens} tokens, T = {sampling.temperature:g}, top_p = {sampling.top_p:g}, "
        f"seed {sampling.seed}"
        if sampling
        else "as given",
        "device": run.manifest.device or "not recorded",
        "decoded by": config.backend or "not recorded",
        "library": model.library or f"transformers {run.manifest.versions.get('transformers', '')}",
        "made": ", ".join([run.manifest.created, *(f"{name} {run.manifest.versions.get(name, '')}" for name in ("layerlens", "torch"))]),
        "again": command(run),
    }
    return [(label, value) for label, value in found.items() if value]


def command(run: Run) -> str:
    """The command that makes the run again; PROMPTS stands for the file of prompts, whose name and options a run does not keep."""
    config, model, texts = run.manifest.config, run.manifest.model, run.manifest.texts
    read_again = None if texts is None or texts.run == "in memory" else texts.run
    words = ["layerlens", "analyze", model.name, read_again or "PROMPTS", "--limit", str(run.manifest.samples.count), "--norm", config.norm]
    if config.lens != "logit":
        words += ["--lens", f"{config.lens}:{run.manifest.lens_file or 'FILE'}"]
    if config.generate is None:
        words += [] if read_again else ["--no-generate"]
    else:
        words += ["--engine", "vllm"] if texts is not None and texts.engine == "vllm" else []
        words += ["--max-new-tokens", str(config.generate.max_new_tokens)]
        words += ["--temperature", f"{config.generate.temperature:g}"] if config.generate.temperature != 1 else []
        words += ["--top-p", f"{config.generate.top_p:g}"] if config.generate.top_p != 1 else []
        words += ["--seed", str(config.generate.seed)] if config.generate.seed else []
    if run.layers != list(range(1, run.n_layers + 1)):
        words += ["--layers", ",".join(map(str, run.layers))]
    wanted = [*config.sites, *config.absent_sites]
    if wanted and len(wanted) < 7:
        words += ["--sites", ",".join(config.sites)]
    more = [name for name in config.metrics if name not in METRICS]
    if config.metrics and set(METRICS) <= set(config.metrics):
        words += ["--metrics", ",".join(["all", *more])] if more else []
    elif config.metrics:
        words += ["--metrics", ",".join(config.metrics)]
    for option in ("rows", "top_k", "kl_from_layer", "tokens_per_sample", "precision", "spread"):
        value, default = getattr(config, option), DEFAULT[option]
        if value != default:
            words += [f"--{option.replace('_', '-')}", f"{value:g}" if isinstance(value, float) else str(value)]
    words += ["--similarity-rows", "all"] if config.similarity_rows == "all" else []
    words += ["--thinking-marks", *config.thinking_marks] if config.thinking_marks != DEFAULT["thinking_marks"] else []
    words += ["--keep", run.manifest.keep] if run.manifest.keep != "rows" else []
    words += ["--dtype", model.dtype, "--out", str(run.path or "RUN")]
    return shlex.join(words)
