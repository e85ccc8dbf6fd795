"""(d) BuPO, GRPO, distillation and token masks at equal rollouts."""

from __future__ import annotations

from pathlib import Path

from benchmarks.study.figures import INTERVALS, forest
from benchmarks.study.findings import Result, claim, difference, evaluation, evaluations
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

LABELS = {
    "distil": f"distillation into layer {DISTILLED}",
    "mask-entropy": f"GRPO on tokens of large entropy at layer {DISTILLED}",
    "mask-kl": f"GRPO on tokens of large KL at layer {DISTILLED}",
    "mask-settling": "GRPO on tokens that settle late",
}


def chains(size: Size) -> list[Chain]:
    found = [*base_chains(size, MODEL), *grpo(size, MODEL, size.many_seeds), *bupo(size, MODEL, LAYER, size.internal, size.many_seeds)]
    for name, options in OTHERS.items():
        found += trainings(size, MODEL, name, options, size.many_seeds)
    return found


def method(size: Size) -> str:
    return f"""Each method less GRPO with the same seed, {size.max_steps} rollouts each, with the trainer's defaults.
BuPO trains layer {LAYER}'s policy for the first {size.internal} rollouts, read with norm none. Distillation pulls layer {DISTILLED}'s
policy towards the final one beside GRPO. The others train the final policy on a fifth of the tokens: those with the largest entropy at
layer {DISTILLED}, with the largest KL of that layer's policy from the final one, or that settle latest."""


def result(out: Path, size: Size) -> Result:
    before = [evaluation(out, MODEL, "base")] * size.many_seeds
    control = evaluations(out, MODEL, "grpo", size.many_seeds)
    claims, table = [], []
    panel: dict[str, Result] = {}
    for name, label in {f"bupo-{LAYER}-{size.internal}": f"BuPO at layer {LAYER}", **LABELS}.items():
        trained = evaluations(out, MODEL, name, size.many_seeds)
        found = panel[label] = difference(trained, control)
        gain = difference(trained, before)
        table.append({"method": label, "gain over GRPO [points]": found, "gain over no training [points]": gain, "seeds": found["seeds"]})
        claims.append(claim(f"{label} gains more than GRPO", found))
    gain = difference(control, before)
    table.append({"method": "GRPO", "gain over no training [points]": gain, "seeds": gain["seeds"]})
    caption = f"At equal rollouts ({size.max_steps} steps). {INTERVALS}"
    figure = forest({MODEL: panel}, "gain over GRPO [points]", caption, out / "figures" / "d.png", scale=100)
    return {"claims": claims, "table": table, "figures": [figure]}
