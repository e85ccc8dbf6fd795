"""(e) Does a long internal phase collapse the final policy, and what do its norm and its clipping change?"""

from __future__ import annotations

from pathlib import Path

from benchmarks.study.figures import INTERVALS, forest
from benchmarks.study.findings import Result, claim, difference, evaluations
from benchmarks.study.settings import LAYER, Size, base_chains, bupo, grpo, trainings
from benchmarks.study.steps import Chain

TITLE = "Does the final policy collapse if the internal phase is long, and what do norm and clipping change?"
MODEL = "tiny-qwen3"
OTHERS = {"norm final": ("norm-final", "--internal_norm final"), "max_grad_norm 1": ("clip-1", "--max_grad_norm 1")}
"""Another setting of the shipped internal phase -> the name of its trainings, and its options."""


def chains(size: Size) -> list[Chain]:
    found = [*base_chains(size, MODEL), *grpo(size, MODEL, size.seeds)]
    for rollouts in filter(None, size.internal_grid):
        found += bupo(size, MODEL, LAYER, rollouts, size.seeds)
    phase = f"--internal_layer {LAYER} --internal_rollouts {size.internal}"
    for name, options in OTHERS.values():
        found += trainings(size, MODEL, f"bupo-{name}", f"{phase} {options}", size.seeds)
    return found


def method(size: Size) -> str:
    return f"""BuPO at layer {LAYER} less GRPO with the same seed, {size.max_steps} rollouts in all: of which some are internal, read with
norm none and gradients clipped at 0.1 (`max_grad_norm`), as in the shipped configuration; and with {size.internal} internal rollouts under
norm final, or clipped at 1 throughout."""


def result(out: Path, size: Size) -> Result:
    control = evaluations(out, MODEL, "grpo", size.seeds)
    trained = {
        "all rollouts" if rollouts == -1 else f"{rollouts} rollouts": evaluations(out, MODEL, f"bupo-{LAYER}-{rollouts}", size.seeds)
        for rollouts in filter(None, size.internal_grid)
    }
    others = {name: evaluations(out, MODEL, f"bupo-{short}", size.seeds) for name, (short, _) in OTHERS.items()}
    shipped = f"{size.internal} rollouts"
    panel = {name: difference(each, control) for name, each in {**trained, **others}.items()}
    claims = [
        claim(f"with {name} internal the final policy is worse than GRPO's", difference(control, each)) for name, each in trained.items()
    ]
    claims += [
        claim(f"{shipped} internal: BuPO with {name} gains more than as shipped", difference(each, trained[shipped]))
        for name, each in others.items()
    ]
    caption = (
        f"At layer {LAYER}, {size.max_steps} rollouts in all; norm none, clipped at 0.1 and {shipped} unless another is named. {INTERVALS}"
    )
    figure = forest({f"{MODEL}: BuPO": panel}, "gain over GRPO [points]", caption, out / "figures" / "e.png", scale=100)
    table = [{"internal phase": name, "gain over GRPO [points]": found, "seeds": found["seeds"]} for name, found in panel.items()]
    return {"claims": claims, "table": table, "figures": [figure]}
