"""(e) Does a long internal phase collapse the final policy?"""

from __future__ import annotations

from pathlib import Path

from benchmarks.study.figures import INTERVALS, forest
from benchmarks.study.findings import Result, claim, difference, evaluations
from benchmarks.study.settings import LAYER, Size, base_chain, bupo, grpo
from benchmarks.study.steps import Chain

TITLE = "Does the final policy collapse if the internal phase is long?"
MODEL = "tiny-qwen3"


def chains(size: Size) -> list[Chain]:
    found = [base_chain(size, MODEL), *grpo(size, MODEL, size.seeds)]
    for rollouts in size.internal_grid:
        if rollouts:
            found += bupo(size, MODEL, LAYER, rollouts, size.seeds)
    return found


def method(size: Size) -> str:
    return f"""GRPO less BuPO at layer {LAYER}, norm none, at {size.max_steps} rollouts in all, of which some are internal: what a longer
internal phase costs the final policy."""


def result(out: Path, size: Size) -> Result:
    control = evaluations(out, MODEL, "grpo", size.seeds)
    claims, table = [], []
    panel: dict[str, Result] = {}
    for rollouts in size.internal_grid:
        if rollouts:
            found = difference(control, evaluations(out, MODEL, f"bupo-{LAYER}-{rollouts}", size.seeds))
            name = "all rollouts" if rollouts == -1 else f"{rollouts} of {size.max_steps} rollouts"
            panel[name] = found
            table.append({"internal": name, "loss against GRPO [points]": found, "seeds": found["seeds"]})
            claims.append(claim(f"with {name} internal the final policy is worse than GRPO's", found))
    caption = f"GRPO less BuPO at layer {LAYER}, norm none, {size.max_steps} rollouts in all. {INTERVALS}"
    figure = forest({f"{MODEL}: internal rollouts": panel}, "loss against GRPO [points]", caption, out / "figures" / "e.png", scale=100)
    return {"claims": claims, "table": table, "figures": [figure]}
