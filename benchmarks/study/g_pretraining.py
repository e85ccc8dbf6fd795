"""(g) How do the entropy curves and phases form during pretraining?"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from benchmarks.study import kept
from benchmarks.study.figures import lines
from benchmarks.study.findings import Result, claim, over_seeds
from benchmarks.study.settings import BOTH, Size
from benchmarks.study.steps import Chain, Step

from layerlens.metrics.phases import PhaseRule, phase_spans

TITLE = "How do the entropy curves and phases form during pretraining?"
BUNDLED = "pretraining/bundled"
MOST = 14.0
"""Nats: no difference of two means of entropy changes is larger, with a vocabulary of 1,024."""


def chains(size: Size) -> list[Chain]:
    seeds = range(size.pretraining_seeds)
    return [
        *([_analysis(size, model, f"{BUNDLED}/{model}")] for model in BOTH),
        *(_chain(size, model, seed) for model in BOTH for seed in seeds),
    ]


def _chain(size: Size, model: str, seed: int) -> Chain:
    """A pretraining, and the analyses of the model after each number of steps."""
    where = f"pretraining/{seed}"
    snapshots = " ".join(f"--snapshot {steps}" for steps in size.pretraining)
    recipe = (
        f"python -m recipes.tiny_models.train --model {model} --steps {size.pretraining[-1]} {snapshots} --seed {seed} "
        f"--no-evaluate --out {{out}}/{where}"
    )
    analyses = [_analysis(size, f"{{out}}/{where}/{model}/step-{steps}", f"{where}/{model}-{steps}") for steps in size.pretraining]
    return [Step(f"{where}/{model}", tuple(recipe.split())), *analyses]


def _analysis(size: Size, folder: str, name: str) -> Step:
    options = f"--limit {size.samples} --dtype float32 --max-new-tokens 256 --norm none"
    words = f"layerlens analyze {folder} arithmetic {options} --out {{out}}/{name}"
    return Step(name, tuple(words.split()), keep=kept.curves)


def curves(out: Path, name: str) -> tuple[np.ndarray, np.ndarray]:
    """Mean entropy of the stream, and mean FFN ΔS, by layer."""
    found = kept.kept(out, name)
    return np.array(found["entropy"]), np.array(found["ffn"])


def after(out: Path, model: str, steps: int, seeds: int) -> tuple[np.ndarray, np.ndarray]:
    """Both curves of the models of all seeds after so many steps, each seeds × layers."""
    entropies, changes = zip(*(curves(out, f"pretraining/{seed}/{model}-{steps}") for seed in range(seeds)), strict=True)
    return np.stack(entropies), np.stack(changes)


def method(size: Size) -> str:
    return f"""Each family is pretrained with {size.pretraining_seeds} seeds (`recipes/tiny_models`), which fix weights and the order of
the data, and analysed after each number of steps on its own answers to {size.samples} problems, norm none. The bundled models are what the
same recipe makes in 5,400 steps of one seed. Phases are found by the rule of `layerlens select` in the mean FFN ΔS of each model; in the
table a slash parts seeds. The order of the phases is the mean FFN ΔS of the lower half of the layers less that of the upper half: above 0
where entropy grows first and falls later."""


def result(out: Path, size: Size) -> Result:
    claims, table, without_first = [], [], []
    entropies: dict[str, dict[str, list[np.ndarray]]] = {}
    ffn: dict[str, dict[str, list[np.ndarray]]] = {}
    first, last = size.pretraining[0], size.pretraining[-1]
    for model in BOTH:
        found = {steps: after(out, model, steps, size.pretraining_seeds) for steps in size.pretraining}
        bundled = [each[None] for each in curves(out, f"{BUNDLED}/{model}")]
        rows = {**{f"{steps:,} steps": both for steps, both in found.items()}, "5,400 steps (bundled)": bundled}
        entropies[model], ffn[model] = ({name: list(both[which]) for name, both in rows.items()} for which in (0, 1))
        for name, (stream, changes) in rows.items():
            spread = float(stream.std(0, ddof=1).mean()) if len(stream) > 1 else None
            table.append({
                "model": model, "after": name, "seeds": len(stream), "entropy by layer [nats]": stream.mean(0).round(2).tolist(),
                "spread over seeds [nats]": spread, "FFN ΔS by layer [nats]": changes.mean(0).round(2).tolist(),
                "order of the phases [nats]": _order(changes).round(2).tolist(),
                "exploration; integration; convergence": " / ".join(map(_phases, changes)),
            })  # fmt: skip
        without_first.append(f"{_order(found[last][1], first=1).mean():+.2f} nats on {model}")
        entropy = {steps: stream.mean(1) for steps, (stream, _) in found.items()}
        order = {steps: _order(changes) for steps, (_, changes) in found.items()}
        claims += [
            claim(
                f"{model}: the mean entropy over layers is lower after {last} steps than after {first}",
                over_seeds(entropy[first] - entropy[last], MOST, "nats"),
            ),
            claim(f"{model}: after {last} steps entropy grows first and falls later", over_seeds(order[last], MOST, "nats")),
            claim(
                f"{model}: entropy growing first and falling later shows more after {last} steps than after {first}",
                over_seeds(order[last] - order[first], MOST, "nats"),
            ),
        ]
    shows = (
        f"norm none, {size.samples} problems; a line for each of {size.pretraining_seeds} seeds of pretraining, and for the bundled model."
    )
    figures = [
        lines(entropies, "mean entropy [nats]", f"Residual stream, {shows}", out / "figures" / "g.png", log=True),
        lines(ffn, "mean FFN ΔS [nats]", f"Entropy change of the FFN, {shows}", out / "figures" / "g-ffn.png"),
    ]
    note = (
        "Seen after the claims were stated: much of the order is layer 1's FFN, which the rule of phases leaves out where it lowers "
        f"entropy. Without layer 1 the order after {last} steps is {' and '.join(without_first)}."
    )
    return {"claims": claims, "table": table, "figures": figures, "note": note}


def _order(changes: np.ndarray, first: int = 0) -> np.ndarray:
    """Mean ΔS of the lower half of the layers, but for the `first`, less that of the upper half; nats, of each row of seeds × layers."""
    half = changes.shape[-1] // 2
    return np.asarray(changes[..., first:half].mean(-1) - changes[..., -half:].mean(-1))


def _phases(change: np.ndarray) -> str:
    """The layers of each phase: "1–3; 4–9; 10–12", with a dash for an empty one."""
    spans = phase_spans(PhaseRule().find(change), len(change))
    return "; ".join("–" if span is None else f"{span[0]}–{span[1]}" for span in spans.values())
