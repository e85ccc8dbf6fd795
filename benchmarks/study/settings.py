"""How large a study is, and the commands of its steps."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from benchmarks.study import kept
from benchmarks.study.steps import Chain, Step

ROOT = Path(__file__).parents[2]
RESULTS, FIGURES, KEPT = (ROOT / name for name in ("benchmarks/study/results", "figures/study", "benchmarks/study/kept.jsonl"))
"""What the repository has of the study."""
HELD_OUT = 101
"""Seed of the held-out problems, which no other part of this repository draws."""
ALONE = 7e-4
"""The learning rate of a layer that is trained alone, √12 times that of all layers: Adam moves each weight by about the rate in a step,
so one block of twelve then takes steps as long as those of all. A second control trains all layers at this rate too."""
LAYER = 11
"""The layer of the shipped configuration, which `layerlens select` recommends on tiny-qwen3."""
DISTILLED = 8
"""The layer of distillation and of token masks in (d)."""


@dataclass(frozen=True)
class Size:
    """What a study costs.

    Attributes:
        models: bundled models.
        layers: trained alone in (a).
        seeds, many_seeds: of most questions, and of (d).
        max_steps: of a training, each on one rollout.
        rollout: words of the rollout's size.
        problems, answers: held-out problems at most (`problems`), and answers to each.
        internal: internal rollouts of BuPO; `internal_grid`: those of (e).
        samples: problems of the analysis before training.
        pretraining: optimizer steps at which (g) looks; `pretraining_seeds`: its seeds.
        gradient_problems: training problems, with 8 answers each, of the gradients in (c).
    """

    models: tuple[str, ...]
    layers: tuple[int, ...]
    seeds: int
    many_seeds: int
    max_steps: int
    rollout: str
    problems: int
    answers: int
    internal: int
    internal_grid: tuple[int, ...]
    samples: int
    pretraining: tuple[int, ...]
    pretraining_seeds: int
    gradient_problems: int = 128

    @property
    def watched(self) -> int:
        """Problems on which a training's monitor looks."""
        return min(16, self.samples)


BOTH, TWELVE = ("tiny-qwen3", "tiny-llama"), tuple(range(1, 13))
SIZES = {
    "smoke": Size(
        ("tiny-qwen3",), (3, 7, 11), 2, 2, 2, "--per_device_train_batch_size 8 --gradient_accumulation_steps 1 --num_generations 4 "
        "--max_completion_length 16", 32, 2, 1, (0, 1, -1), 4, (2, 4), 2, gradient_problems=16,
    ),
    "small": Size(
        BOTH, TWELVE, 4, 8, 32, "--per_device_train_batch_size 64 --gradient_accumulation_steps 2", 512, 4, 5, (0, 5, 20, -1), 48,
        (100, 400, 1000), 3,
    ),
    "full": Size(
        BOTH, TWELVE, 8, 16, 40, "--per_device_train_batch_size 128 --gradient_accumulation_steps 1", 1024, 16, 5, (0, 5, 20, -1), 256,
        (100, 400, 1000, 2000, 4200, 5400), 3,
    ),
}  # fmt: skip
"""smoke: does it run; small: two cores, ten to twenty hours; full: for a GPU."""


def describe(size: Size) -> str:
    """How models are trained and evaluated, for the page."""
    return (
        f"A training is `layerlens train --config tiny-qwen3-cpu {size.rollout}`, which answers new problems of the two easiest levels "
        f"8 times each, for {size.max_steps} steps of one rollout, with each of {size.seeds} seeds ({size.many_seeds} in (d)), "
        f"which also draw the problems; methods are compared at equal seeds. An evaluation is `layerlens eval`: "
        f"{size.answers} answers at temperature 1 to each of at most {size.problems} held-out problems of all levels, drawn with a seed "
        "of their own. No value of a setting was chosen by these; but a first run of (a) on them, with shorter trainings and one learning "
        "rate, in which GRPO lost accuracy, is why settings were chosen anew, on validation problems."
    )


def held_out(size: Size) -> Step:
    """The problems that every model is evaluated on."""
    words = f"python -m benchmarks.study.problems --split test --problems {size.problems} --seed {HELD_OUT} --out {{out}}/held-out.jsonl"
    return Step("held-out", tuple(words.split()))


def base_chains(size: Size, model: str) -> list[Chain]:
    """The model before training: analysed under both norms, and evaluated."""
    analyses = [
        Step(
            f"{model}/run-{norm}",
            tuple(
                f"layerlens analyze {model} arithmetic --limit {size.samples} --dtype float32 --max-new-tokens 256 --norm {norm} "
                f"--metrics all,js_to_final --out {{out}}/{model}/run-{norm}".split()
            ),
        )
        for norm in ("none", "final")
    ]
    return [[step] for step in (*analyses, _evaluation(size, model, model, "base"))]


def gradients_chain(size: Size, model: str) -> Chain:
    """The gradients of the layers' policies on training problems that the model before training has answered."""
    problems, answers, where = "{out}/training-problems.jsonl", f"{model}/training-answers", f"{model}/gradients.json"
    sample = (
        f"layerlens eval {model} --tasks {problems} --reward arithmetic --answers 8 --dtype float32 --max-new-tokens 112 --batch-size 128 "
        f"--no-figure --out {{out}}/{answers}"
    )
    measure = (
        f"python -m benchmarks.study.gradients {model} {{out}}/{answers}/training-problems --problems {problems} --out {{out}}/{where}"
    )
    drawn = f"--split train --difficulties 1 2 --problems {size.gradient_problems} --seed 0"  # as the trainings draw theirs
    draw = f"python -m benchmarks.study.problems {drawn} --out {problems}"
    return [
        Step("training-problems", tuple(draw.split())),
        Step(answers, tuple(sample.split())),
        Step(where, tuple(measure.split()), keep=kept.numbers),
    ]


def training(size: Size, model: str, name: str, options: str, seed: int) -> Chain:
    """A training and the evaluation of what came out."""
    where = f"{model}/{name}-{seed}"
    words = (
        f"layerlens train --config tiny-qwen3-cpu --model {model} {size.rollout} --max_steps {size.max_steps} --monitor_every "
        f"{size.max_steps} --monitor_problems {size.watched} --save_steps {max(1, size.max_steps // 3)} --save_total_limit 1 "
        f"--seed {seed} --problems_seed {seed} {options} --output_dir {{out}}/{where}"
    )
    return [
        Step(where, tuple(words.split()), trains=True, keep=kept.watched),
        _evaluation(size, model, f"{{out}}/{where}", f"{name}-{seed}"),
    ]


def trainings(size: Size, model: str, name: str, options: str, seeds: int) -> list[Chain]:
    """The training with each seed."""
    return [training(size, model, name, options, seed) for seed in range(seeds)]


def grpo(size: Size, model: str, seeds: int) -> list[Chain]:
    """GRPO on all layers: the control of every question."""
    return trainings(size, model, "grpo", f"--internal_layer none --monitor_layer {LAYER}", seeds)


def fast_grpo(size: Size, model: str, seeds: int) -> list[Chain]:
    """GRPO on all layers at the rate of a layer that is trained alone: whether that rate is what a layer alone gains by."""
    options = f"--internal_layer none --learning_rate {ALONE} --monitor_layer {LAYER}"
    return trainings(size, model, "grpo-fast", options, seeds)


def bupo(size: Size, model: str, layer: int, rollouts: int, seeds: int) -> list[Chain]:
    """BuPO at a layer for a number of rollouts."""
    return trainings(size, model, f"bupo-{layer}-{rollouts}", f"--internal_layer {layer} --internal_rollouts {rollouts}", seeds)


def _evaluation(size: Size, model: str, folder: str, name: str) -> Step:
    words = (
        f"layerlens eval {folder} --tasks {{out}}/held-out.jsonl --reward arithmetic --answers {size.answers} --dtype float32 "
        f"--max-new-tokens 256 --batch-size 128 --no-figure --out {{out}}/{model}/evals/{name}"
    )
    return Step(f"{model}/evals/{name}", tuple(words.split()), keep=kept.scores)
