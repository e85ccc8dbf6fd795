"""(b) What does BuPO gain at each layer, and how far is each rule's choice from the best layer in hindsight?"""

from __future__ import annotations

from collections import Counter
from pathlib import Path

from benchmarks.study.figures import INTERVALS, by_layer
from benchmarks.study.findings import Result, claim, difference, difference_of_best, evaluations
from benchmarks.study.settings import Size, base_chains, bupo, grpo
from benchmarks.study.steps import Chain

import layerlens as ll
from layerlens.types import RULES

PAPERS_RULE = "boundary"
TITLE = "What does BuPO gain at each layer, and what does each rule of choice lose against hindsight?"


def layers(size: Size) -> list[int]:
    """Every second layer, with the one that the paper's rule chooses and without the last; or those of a smaller study."""
    return [layer for layer in size.layers if layer % 2 or len(size.layers) < 12]


def chains(size: Size) -> list[Chain]:
    found: list[Chain] = []
    for model in size.models:
        found += [*base_chains(size, model), *grpo(size, model, size.seeds)]
        for layer in layers(size):
            found += bupo(size, model, layer, size.internal, size.seeds)
    return found


def method(size: Size) -> str:
    return f"""BuPO with {size.internal} of {size.max_steps} rollouts at the layer, read with norm none, less GRPO with the same seed. Each
rule chooses from the analysis of the model before training; a layer between those that were trained stands for the nearest. A rule's
regret is what the best layer gains over the one that it chose, and like the claim of the best layer free of luck: each quarter of seeds ×
problems takes the layer that is best on the other seeds and other problems."""


def result(out: Path, size: Size) -> Result:
    claims, table, panels, marks = [], [], {}, {}
    for model in size.models:
        control = evaluations(out, model, "grpo", size.seeds)
        trained = {layer: evaluations(out, model, _name(size, layer), size.seeds) for layer in layers(size)}
        found = panels[model] = {layer: difference(each, control) for layer, each in trained.items()}
        table += [{"model": model, "layer": layer, "gain over GRPO [points]": each} for layer, each in found.items()]
        best = difference_of_best(trained, control)
        named = ", ".join(map(str, best["layers"]))
        claims.append(claim(f"{model}: BuPO at its best layer ({named}) gains more than GRPO", best))
        chosen: dict[int, list[str]] = {}
        for norm in ("none", "final"):
            run = ll.open_run(out / model / f"run-{norm}")
            for rule in RULES:
                if (layer := _chosen(run, rule)) is None:
                    continue
                near = min(found, key=lambda each: abs(each - layer))
                words = f"{rule}, norm {norm}"
                chosen.setdefault(near, []).append(words)
                regret = difference_of_best(trained, trained[near])
                table.append({"model": model, "rule": words, "layer": layer, "trained": near, "regret [points]": regret})
                if rule == PAPERS_RULE and norm == "none":
                    claims.append(claim(f"{model}: BuPO at the layer of the paper's rule ({layer}) gains more than GRPO", found[near]))
        marks[model] = {layer: "\n".join(rules) for layer, rules in chosen.items()}
    shows = f"BuPO less GRPO at equal rollouts, {size.internal} of {size.max_steps} internal, norm none."
    caption = f"{shows} {INTERVALS} Words: rules that choose the layer, or one nearest to it."
    figure = by_layer(panels, marks, "gain over GRPO [points]", caption, out / "figures" / "b.png", scale=100)
    return {"claims": claims, "table": table, "figures": [figure], "note": _note(table)}


def _note(table: list[Result]) -> str:
    """How many gains and regrets are told from 0 by both intervals, which is no claim: so many were looked at."""
    words = []
    for column in ("gain over GRPO [points]", "regret [points]"):
        verdicts = Counter(claim("", row[column])["verdict"] for row in table if column in row)
        above, below = (verdicts[verdict] or "none" for verdict in ("held", "not held"))
        what = f"{verdicts.total()} {'gains over GRPO' if 'gain' in column else 'regrets'}"
        words.append(f"Of {what} both intervals lie above 0 for {above}, and below for {below}.")
    return " ".join(words)


def _name(size: Size, layer: int) -> str:
    return f"bupo-{layer}-{size.internal}"


def _chosen(run: ll.Run, rule: str) -> int | None:
    try:
        return ll.select_layer(run, rule).layer  # type: ignore[arg-type]
    except ll.LayerLensError:  # a rule for the other norm
        return None
