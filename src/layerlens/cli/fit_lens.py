"""`layerlens fit-lens`: a Jacobian or tuned lens, fitted to a model and judged on texts that it was not fitted on."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from layerlens.cli.options import AsJson, ModelName, ModelOptions, PromptOptions, SamplingOptions, grouped, print_json
from layerlens.errors import PromptError
from layerlens.types import FittedLensName

if TYPE_CHECKING:
    from layerlens.models import LensModel
    from layerlens.prompts.sample import Sample

ANSWERED_AT_ONCE = 8
"""Prompts that are answered in one batch."""

COLUMNS = ("kl_logit", "kl_lens", "skill_logit", "skill_lens")


@grouped
def fit_lens(
    model: ModelName,
    prompts: Annotated[
        str, typer.Argument(metavar="TEXTS", help="Texts to fit on, as `layerlens analyze` reads prompts, with their responses.")
    ],
    out: Annotated[
        Path,
        typer.Option("--out", "-o", help="File (jacobian) or folder (tuned) to write. The same command continues a fit that was stopped."),
    ],
    *,
    kind: Annotated[
        FittedLensName,
        typer.Option(
            help="jacobian: the mean effect of each layer's state on the final one (no training; d backward passes per text); tuned: an "
            "affine map per layer, trained towards the final policy."
        ),
    ] = "tuned",
    limit: Annotated[int | None, typer.Option(help="Read this many texts at most, from the start.", min=1, rich_help_panel="Texts")] = None,
    held_out: Annotated[
        int | None,
        typer.Option(
            help="Texts at the end to judge the lens on instead of fitting. [default: an eighth]",
            min=0,
            show_default=False,
            rich_help_panel="Texts",
        ),
    ] = None,
    reading: Annotated[PromptOptions, "Texts"],
    max_new_tokens: Annotated[
        int, typer.Option(help="Sample responses of at most this length to prompts without one; 0 takes prompts alone.", min=0,
                          rich_help_panel="Texts")
    ] = 256,
    sampling: Annotated[SamplingOptions, "Texts"],
    max_tokens: Annotated[int, typer.Option(help="Of a longer text the beginning counts.", min=2, rich_help_panel="Fit")] = 128,
    steps: Annotated[int, typer.Option(help="tuned: optimizer steps.", min=1, rich_help_panel="Fit")] = 250,
    rows: Annotated[int, typer.Option(help="tuned: tokens per step.", min=1, rich_help_panel="Fit")] = 64,
    rate: Annotated[float, typer.Option(help="tuned: learning rate at the first step; it falls to 0.", rich_help_panel="Fit")] = 1e-3,
    loading: ModelOptions,
    as_json: AsJson = False,
) -> None:  # fmt: skip
    """Fit a lens: per layer a map that carries states to the final layer, so that they can be read there.

    The files are those of TransformerLens and of the package tuned-lens; `layerlens analyze --norm final --lens KIND:OUT` reads through
    them.

    Example: layerlens fit-lens Qwen/Qwen3-0.6B math500.parquet --limit 100 --out lenses/qwen3
    """
    import layerlens as ll
    from layerlens.models.lenses.fit_jacobian import fit_jacobian
    from layerlens.models.lenses.fit_tuned import TunedSettings, fit_tuned
    from layerlens.storage.bundled import bundled_prompts

    loaded = ll.load(model, **loading.keywords())
    samples = reading.read(bundled_prompts() if prompts == "arithmetic" else prompts, loaded, limit)
    away = len(samples) // 8 if held_out is None else held_out
    if away >= len(samples):
        raise PromptError(f"{len(samples)} texts were read, and --held-out {away} leaves none to fit on")
    samples = _answered(loaded, samples, sampling, max_new_tokens)
    texts = [sample.token_ids for sample in samples[: len(samples) - away]]
    if kind == "jacobian":
        lens = fit_jacobian(loaded, texts, out, max_tokens=max_tokens)
    else:
        lens = fit_tuned(loaded, texts, out, TunedSettings(steps, rows, rate, max_tokens, sampling.seed))
    judged = _judged(loaded, samples[len(samples) - away :], f"{kind}:{out}") if away else []
    if as_json:
        print_json({"lens": f"{kind}:{out}", "model": loaded.name, "texts": lens.n_prompts, "held_out": away, "layers": judged})
        return
    print(f"{loaded.name}: {kind} lens fitted on {lens.n_prompts} texts -> {out}")
    if judged:
        others = f"{away} other text{'s' if away > 1 else ''}"
        print(f"\non {others}, at resid_post of each layer: mean KL to the final policy and skill, in nats a token")
        print(f"{'layer':>5}  {'KL logit':>9} {'KL lens':>9}  {'skill logit':>11} {'skill lens':>11}")
        for row in judged:
            values = [row[name] for name in COLUMNS]
            print(f"{row['layer']:>5}  {values[0]:>9.2f} {values[1]:>9.2f}  {values[2]:>11.2f} {values[3]:>11.2f}")
        print("\nskill: what the policy gives the tokens that follow beyond guessing uniformly; under 0 it is worse than guessing")
    print(f"next: layerlens analyze {model} {prompts} --norm final --lens {kind}:{out} --out RUN")


def _answered(model: LensModel, samples: list[Sample], sampling: SamplingOptions, max_new_tokens: int) -> list[Sample]:
    from layerlens.models import generate_responses

    if not max_new_tokens:
        return samples
    generation, answered = sampling.generation(max_new_tokens), []
    for start in range(0, len(samples), ANSWERED_AT_ONCE):
        batch = samples[start : start + ANSWERED_AT_ONCE]
        answered += generate_responses(model, batch, generation, range(start, start + len(batch)))
    return answered


def _judged(model: LensModel, samples: list[Sample], lens: str) -> list[dict[str, Any]]:
    """KL to the final policy and skill of each layer on the samples, through the logit lens and through the fitted lens."""
    import layerlens as ll

    means = {}
    for name, which in (("logit", "logit"), ("lens", lens)):
        run = ll.analyze(model, samples, norm="final", lens=which, sites="resid_post", metrics=("kl_to_final", "logp_next"))
        for short, metric, more in (("kl", "kl_to_final", 0.0), ("skill", "logp_next", math.log(model.parts.unembedding_weight.shape[0]))):
            means[f"{short}_{name}"] = run.mean(metric, rows="all", resamples=1)["mean"].values[:, 0] + more
    return [{"layer": layer, **{name: float(means[name][layer - 1]) for name in COLUMNS}} for layer in range(1, model.n_layers + 1)]
