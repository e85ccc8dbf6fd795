"""(d) BuPO, GRPO, distillation and token masks at equal rollouts."""

from __future__ import annotations

from pathlib import Path

from benchmarks.study.figures import INTERVALS, forest
from benchmarks.study.findings import Result, claim, difference, evaluations
from benchmarks.study.settings import DISTILLED, LAYER, Size, base_chains, bupo, grpo, trainings
from benchmarks.study.steps import Chain

TITLE = "Which of BuPO, distillation and token masks gains more than GRPO at equal rollouts?"
MODEL = "tiny-qwen3"
OTHERS = {
    "distil": f"--internal_layer none --internal_loss distill --distill_layers {DISTILLED} --monitor_layer {DISTILLED}",
    "mask-entropy": f"--internal_layer none --token_signal entropy --token_layer {DISTILLED} --monitor_layer {DISTILLED}",
    "mask-kl": f"--internal_layer none --token_signal kl_to_final --token_layer {DISTILLED} --monitor_layer {DISTILLED}",
    "mask-settling": f"--internal_layer none --token_signal settling_depth --monitor_layer {DISTILLED}",
}


def chains(size: Size) -> list[Chain]:
    found = [*base_chains(size, MODEL), *grpo(size, MODEL, size.many_seeds), *bupo(size, MODEL, LAYER, size.internal, size.many_seeds)]
    for name, options in OTHERS.items():
        found += trainings(size, MODEL, name, options, size.many_seeds)
    return found


def method(size: Size) -> str:
    return f"""Each method less GRPO with the same seed, {size.max_steps} rollouts each, with the trainer's defaults.
bupo-{LAYER}-{size.internal}: layer {LAYER}'s policy for {size.internal} rollouts, norm none. distil: internal distillation of the final
policy into layer {DISTILLED} beside GRPO. mask-…: GRPO on the tokens with the largest entropy or KL to the final policy at layer
{DISTILLED}, or on those that settle latest."""


def result(out: Path, size: Size) -> Result:
    control = evaluations(out, MODEL, "grpo", size.many_seeds)
    claims, table = [], []
    panel: dict[str, Result] = {}
    for name in (f"bupo-{LAYER}-{size.internal}", *OTHERS):
        found = panel[name] = difference(evaluations(out, MODEL, name, size.many_seeds), control)
        table.append({"method": name, "gain over GRPO [points]": found, "seeds": found["seeds"]})
        claims.append(claim(f"{name} gains more than GRPO", found))
    caption = f"At equal rollouts ({size.max_steps} steps). {INTERVALS}"
    figure = forest({MODEL: panel}, "gain over GRPO [points]", caption, out / "figures" / "d.png", scale=100)
    return {"claims": claims, "table": table, "figures": [figure]}
