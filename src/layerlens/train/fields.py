"""The fields of a training configuration, with the help of each. Reading them does not need TRL, so `--help` does not either."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, fields
from typing import Any

from layerlens.errors import TrainingError


def _field(default: Any, text: str) -> Any:
    return field(default=default, metadata={"help": text})


@dataclass
class ScriptArguments:
    """What `layerlens train` loads: model, problems and reward; the fields of `BuPOConfig` say how it trains."""

    model: str = _field("", "Model to train: a hub name, a folder, or a bundled model (tiny-qwen3, tiny-llama).")
    problems: str = _field(
        "arithmetic", "Training problems: a prompts file with ground truths, a hub dataset, or arithmetic (drawn afresh)."
    )
    problems_limit: int | None = _field(None, "Take this many problems at most.")
    problems_split: str = _field("train", "Split of a hub dataset.")
    problems_seed: int = _field(0, "Seed of the arithmetic problems.")
    problems_difficulties: list[int] | None = _field(
        None, "Draw arithmetic problems of these difficulties only, 1 (easiest) to 4; default: all four."
    )
    max_prompt_length: int | None = _field(None, "Leave out problems whose prompt has more tokens than this; default: keep all.")
    system: str | None = _field(None, "System message in front of every problem.")
    chat_template: str | None = _field(None, "Chat template in place of the model's: a Jinja file, or octothinker.")
    reward: str = _field("math", "Reward of an answer: math, boxed, arithmetic, or module:function.")
    dtype: str = _field("auto", "Data type of the weights: auto (as stored), bfloat16, float16 or float32.")
    threads: int | None = _field(None, "CPU threads; small models are fastest with 1.")
    resume: bool = _field(False, "Continue from the last checkpoint in output_dir.")
    lora_rank: int = _field(0, "Train LoRA adapters of this rank in place of the weights; 0: the weights themselves.")
    lora_alpha: int = _field(32, "Alpha of the LoRA adapters.")

    def __post_init__(self) -> None:
        least = {"problems_limit": 1, "max_prompt_length": 1, "threads": 1, "lora_rank": 0}
        for name, low in least.items():
            given = getattr(self, name)
            if given is not None and given < low:
                raise TrainingError(f"{name} must be at least {low}, got {given}")


@dataclass
class BuPOFields:
    """What `BuPOConfig` adds to TRL's GRPOConfig. `BuPOTrainer` defines rollout and optimizer step."""

    internal_layer: int | str | None = _field(
        None,
        "Layer (from 1) whose policy the internal phase trains; or a file that layerlens select RUN --json has written; or auto: "
        "analyse the model on training prompts first and choose; or none: plain GRPO.",
    )
    internal_rollouts: int | None = _field(
        None, "Rollouts of the internal phase, the paper's s_inter; 0: no internal phase, plain GRPO; -1: the whole run."
    )
    internal_schedule: list[Any] | str | None = _field(
        None, "Several internal phases, bottom-up, as layer:rollouts: 4:10,8:20; in a file also as a list of [layer, rollouts]."
    )
    internal_lens: str = _field(
        "logit",
        "What carries the layer's state to the final norm: logit (nothing), or jacobian:FILE or tuned:FOLDER, with internal_norm final. "
        "The lens is held fixed, and the monitor reads without it.",
    )
    internal_norm: str = _field("none", "What stands between the layer and the unembedding: none (the paper), or final (the final norm).")
    internal_rule: str | None = _field(
        None,
        "With auto: the rule that chooses: boundary, settled, skill, settling_depth, agreement or entropy_drop; by default the first "
        "of these that names a usable layer, as layerlens select recommends.",
    )
    internal_samples: int = _field(32, "With auto: how many training prompts are analysed.")
    decay_above: bool = _field(
        False, "Let weight decay act on the blocks above the layer in the internal phase; otherwise these blocks do not move at all."
    )
    layer_lr_factors: str | None = _field(
        None, "Factors of the learning rate by layer, for the whole run: 1-6:1.0,7-36:0.1; a layer not named has 1."
    )
    layer_lr_decay: float | None = _field(
        None, "One factor of the learning rate for all blocks above layer_lr_above (0.1 in the paper's control)."
    )
    layer_lr_above: int | None = _field(None, "Layer above which layer_lr_decay acts; default: internal_layer.")
    internal_loss: str | None = _field(
        None,
        "distill: beside GRPO's loss, the policies of distill_layers learn from the final policy, on the rollouts on which that "
        "is trained; none takes a file's distillation away.",
    )
    distill_layers: list[Any] | str | int | None = _field(
        None, "Layers that learn from the final policy: 7, or 4,8; default: internal_layer, if it is a number."
    )
    distill_lambda: float = _field(0.1, "Weight of the divergence (bits, mean over layers and tokens) beside GRPO's loss; 0: GRPO.")
    distill_weights: str = _field(
        "one", "Weight of a token's divergence: one, positive (its advantage, at least 0) or absolute (the size of its advantage)."
    )
    token_signal: str | None = _field(
        None,
        "GRPO's loss on the tokens with the largest entropy or kl_to_final at token_layer, or settling_depth, read with the final norm; "
        "none takes a file's mask away.",
    )
    token_layer: int | None = _field(None, "Layer of token_signal; with entropy at the last layer it is TRL's top_entropy_quantile.")
    token_quantile: float = _field(
        0.2, "Share of a batch's tokens that token_signal keeps; tokens that are equal at its edge are all kept."
    )
    train_layers: list[Any] | str | int | None = _field(
        "all",
        "Blocks that alone learn, for the whole run: 7, or 1-3,7; every other weight stays as it is, embedding, norm and unembedding "
        "too. all: every weight.",
    )
    freeze_layers: int = _field(0, "Freeze blocks 1 to this layer, and the embedding unless it is tied, for the whole run; 0: none.")
    monitor_every: int = _field(
        0,
        "Optimizer steps between two snapshots of the model; snapshots are also taken before the first step, after the last, and when an "
        "internal phase ends; 0: no monitor.",
    )
    monitor_layer: int | None = _field(
        None,
        "The watched layer, whose similarity and KL to the layers above it are measured; default: the first internal layer, else the "
        "first of train_layers, else the last.",
    )
    monitor_problems: int = _field(16, "Training problems that every snapshot is taken on.")
    monitor_repeats: int = _field(4, "Fresh answers to each of the monitor's problems, for response length and stability of the answers.")


DEFAULTS = {each.name: each.default for each in fields(BuPOFields)}
"""What `BuPOConfig` has where nothing is given, by field."""


def describe_fields(cls: type) -> Iterator[tuple[str, str]]:
    """Yields the name and the help of each field of one of these classes, with the default unless the help says it."""
    for each in fields(cls):
        text = each.metadata["help"]
        yield each.name, text if each.default in (None, "") else f"{text} [default: {str(each.default).lower()}]"
