"""The page that shows what `real_models.py` measured, and its figures."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import layerlens as ll
from layerlens.selection.rules import NAMED
from layerlens.selection.words import percent

KINDS = {"none": "none", "matched": "matched", "final": "final", "tuned": "final, tuned lens", "jacobian": "final, Jacobian lens"}
"""How the table calls the norm and lens of a run."""

PAIRS = (("tiny-llama", "tiny-qwen3"), ("smollm2-135m-instruct", "qwen2.5-coder-0.5b-instruct"))
"""Models of the paper's two families, Llama first."""

PAGE = """# What rules, norms and lenses say on real models

Written by `python -m benchmarks.real_models MATH500`, which keeps its figures in [real_models.json](../benchmarks/real_models.json)
(torch {torch}, transformers {transformers}, CPU, float32, seed 0). The bundled models answer {bundled_prompts} bundled problems in up to
{bundled_tokens} tokens, the real ones the first {real_prompts} problems of MATH500 in up to {real_tokens}. **The weights of the three real
models were dequantised from 4 bits**, so the models behave a little differently from those that were published, and {real_prompts} problems
are few: read every interval, and no figure to its last digit. Means weigh samples alike over response rows; intervals are 95%.

## What each rule says

The layer that each [rule](definitions.md#phases-and-the-choice-of-layer) names, with the share of resamples that give it. In brackets: an
answer that is undetermined (under 50%). *open*: only an end of the model, by construction. *recommended*: by `layerlens select`.
*-*: not defined for this norm or lens.

| model (layers) | norm, lens | usable layers | boundary | settled | skill | settling depth | agreement | entropy drop | recommended |
|---|---|---|---|---|---|---|---|---|---|
{rules}

{said}

Which rule names the layer that trains best is not known; nothing here was trained.

## Where a raw reading is an artefact of scale

Norm none decodes a state as it is, so what it reads depends on how long the state is, which the model's function does not show: a norm
comes before every reader. At the last layer the raw policy should be the final policy. How near it comes:

| model | agrees with the final policy at the last layer | skill there, nats a token | final policy's |
|---|---|---|---|
{last}

What `layerlens select` says of those that are not read:

{diagnoses}

What part of the FFN's ΔS is scale: a run of norm matched, which gives every state's logits one spread, splits ΔS under norm none into shape
and scale, exactly ([definitions](definitions.md)). *rank correlation*: of entropy with the spread of the logits, over tokens, layers and
the two sites. *share of scale*: Σ |scale| in Σ |scale| + Σ |shape|. *sign*: layers in which ΔS has the sign of its part of scale.

| model | rank correlation | share of scale | sign is that of scale |
|---|---|---|---|
{scale}

![Change of entropy in the FFNs of SmolLM2 under norm none, split into shape and scale](../figures/real-smollm2-scale-shape.png)

**The same function, other weights.** The gain of each FFN's norm is divided by {factor:g} and the weights behind it are multiplied by
{factor:g}: no output of the model changes. What `boundary` names, and the largest change of mean ΔS in a layer:

| model | norm | boundary before | after | largest change of ΔS, nats |
|---|---|---|---|---|
{rescaled}

What is left under norm final is the ε that a norm adds to the mean square of its input before it divides: a state {factor:g} times
shorter feels it {factor:g}² times as much.

## Through fitted lenses

What `layerlens fit-lens` fits on prompts that are not analysed: a tuned lens on {lens_texts} in {lens_steps} steps, and a Jacobian lens on
a few of them (its authors call 100 texts of 128 tokens usable). {fits}.

Mean skill by depth, nats a token, through the logit lens and through those, all with norm final. Below 0 is worse than guessing.

| model | lens | {depths} |
|---|---|{depth_columns}|
{lens}

A lens changes what an analysis reads, and what is trained only if training takes it too (`internal_lens`).

## Do the families differ in the paper's direction?

The paper: Llama's entropy collapses in the last layers, Qwen's falls progressively. Raw entropy cannot say (above), so the question is
asked of the KL to the final policy, norm final: how much of it is left at 90% of the depth, and from which depth it stays under a tenth.

| model | family | KL left at 90% of depth | under a tenth at l / L | disagreement left at 90% |
|---|---|---|---|---|
{families}

{verdicts}

{direction} These are models of other sizes, trained on other data: they show what the measure does, and not yet that families differ.

![KL to the final policy and disagreement with it on relative depth, real models](../figures/real-settling.png)
"""


def page(found: dict[str, Any]) -> str:
    """The page of what was measured."""
    models: dict[str, dict[str, Any]] = found["models"]
    none = {name: model["runs"]["none"] for name, model in models.items()}
    measures = (("late_share", True), ("settle_depth", False), ("disagreement_late_share", True))
    tables = {
        "rules": [_rules(name, kind, run, model) for name, model in models.items() for kind, run in model["runs"].items()],
        "said": [_said(name, model) for name, model in models.items()],
        "last": [
            _row(name, f"{run['last_agreement']:.0%}", f"{run['last_skill']:+,.1f}", f"{run['final_skill']:+.1f}")
            for name, run in none.items()
        ],
        "diagnoses": [f'- {name}: "{run["diagnosis"]}"' for name, run in none.items() if run["diagnosis"]],
        "scale": [_scale(name, model) for name, model in models.items()],
        "rescaled": [
            _row(name, norm, row["before"], row["after"], f"{row['change']:.1g}")
            for name, model in models.items()
            for norm, row in model["rescaled"].items()
        ],
        "lens": [
            _row(name, lens, *(f"{value:+.1f}" for value in values))
            for name, model in models.items()
            for lens, values in model["lens"].items()
        ],
        "families": [
            _row(name, model["family"], *(_interval(model["settling"][measure], as_share) for measure, as_share in measures))
            for name, model in models.items()
        ],
        "verdicts": [f"- {text}" for text in found["verdicts"]],
    }
    return PAGE.format(
        **{name: value for name, value in found.items() if name not in (*tables, "depths")},
        **{name: "\n".join(rows) for name, rows in tables.items()},
        fits=". ".join(_fits(models)),
        direction=" ".join(_direction(models, *pair) for pair in PAIRS),
        depths=" | ".join(f"{depth:.0%}" for depth in found["depths"]),
        depth_columns="|".join("---" for _ in found["depths"]),
    )


def _fits(models: dict[str, dict[str, Any]]) -> Iterator[str]:
    """How much the lenses of which models were fitted on."""
    for fit in dict.fromkeys(tuple(model["fit"].items()) for model in models.values()):
        size = dict(fit)
        names = ", ".join(name for name, model in models.items() if model["fit"] == size)
        yield f"For {names}: {size['rows']} tokens a step, and {size['texts']} prompts of up to {size['tokens']} tokens"


def _direction(models: dict[str, dict[str, Any]], llama: str, qwen: str) -> str:
    late, early = (models[name]["settling"]["late_share"] for name in (llama, qwen))
    if late["low"] > early["high"]:
        return f"The Llama {llama} settles later than the Qwen {qwen}, the paper's direction, with intervals apart."
    if late["high"] < early["low"]:
        return f"The Llama {llama} settles earlier than the Qwen {qwen}, against the paper's direction, with intervals apart."
    return f"The intervals of the Llama {llama} and the Qwen {qwen} overlap."


def _scale(name: str, model: dict[str, Any]) -> str:
    part = model["scale"]
    return _row(name, f"{part['rank_correlation']:.2f}", f"{part['share']:.0%}", f"{part['same_sign']} of {model['layers']}")


def _row(*cells: object) -> str:
    return f"| {' | '.join(map(str, cells))} |"


def _rules(name: str, kind: str, run: dict[str, Any], model: dict[str, Any]) -> str:
    cells = [_answer(run["rules"].get(rule)) for rule in ("boundary", "settled", "skill", "settling_depth", "agreement", "entropy_drop")]
    chosen = "**none**" if run["layer"] is None else f"**{run['layer']}** ({run['rule']})"
    return _row(f"{name} ({model['layers']})", KINDS[kind], run["usable"], *cells, chosen)


def _answer(answer: dict[str, Any] | None) -> str:
    if answer is None:
        return "-"
    layer = "none" if answer["layer"] is None else str(answer["layer"])
    if answer["open"]:
        return f"{layer} open"
    share = percent(answer["frequency"])
    return f"({layer} {share})" if answer["frequency"] < NAMED else f"{layer} {share}"


def _said(name: str, model: dict[str, Any]) -> str:
    norms = {kind: run["layer"] for kind, run in model["runs"].items()}
    return f"- {name}: " + ", ".join(
        f"{'no layer' if layer is None else f'layer {layer}'} under {KINDS[kind].replace(', ', ' with the ')}"
        for kind, layer in norms.items()
    )


def _interval(value: dict[str, float | None], as_share: bool) -> str:
    if value["value"] is None:
        return "none"
    ends = [value[key] for key in ("value", "low", "high")]
    middle, low, high = (f"{100 * end:.1f}%" if as_share else f"{end:.2f}" for end in ends if end is not None)
    return f"{middle} ({low} to {high})"


def figures(runs: dict[str, dict[str, ll.Run]], out: Path) -> None:
    """Draws the figures of the page."""
    smol = runs["smollm2-135m-instruct"]
    ll.plots.save(ll.plots.scale_shape(smol["none"], smol["matched"]), out / "real-smollm2-scale-shape.png")
    finals = [found["final"] for name, found in runs.items() if not name.startswith("tiny")]
    ll.plots.save(ll.plots.convergence(finals), out / "real-settling.png")
