"""What will be trained when: the table that is shown at start, and what `schedule.json` keeps of it."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from layerlens.errors import TrainingError
from layerlens.selection import LayerChoice
from layerlens.selection.words import nats
from layerlens.storage.training_folder import read_schedule
from layerlens.train.layer_rates import Factors, describe_rates
from layerlens.train.schedule import WHOLE_RUN, Span
from layerlens.train.signal_options import signal_contents, signal_rows
from layerlens.train.trained_weights import ALL

if TYPE_CHECKING:
    from layerlens.train.config import BuPOConfig


COMPARED = ["phases", "norm", "lens", "train_layers", "freeze_layers", "layer_lr_factors", "distillation", "token_mask"]
"""What a run must have in common with the one that it goes on with."""


def plan_rows(args: BuPOConfig, spans: Sequence[Span], factors: Factors, choice: LayerChoice | None) -> Iterator[tuple[str, str]]:
    """Yields what is trained, and when or how, as rows of two texts."""
    if choice is not None and spans:
        yield "choice", choice.reason
        if choice.skill is not None:
            whole = "" if choice.final_skill is None else f" (final policy: {nats(choice.final_skill)})"
            yield "skill of its policy", f"{nats(choice.skill)} a token over guessing{whole}"
        if choice.run is not None:
            yield "chosen on", f"{choice.run} ({choice.model}), rule {choice.rule}"
    for layer, rollouts, first, last in spans:
        steps = 0 if last is None else last - first + 1
        counted = _count(steps, "optimizer step") if steps > 0 else "within one optimizer step"
        length = "the rest of the run" if last is None else f"{_count(rollouts, 'rollout')} ({counted})"
        if 0 < args.max_steps < first:
            length = f"not reached in {_count(args.max_steps, 'optimizer step')}"
        lens = "" if args.internal_lens == "logit" else f", through {args.internal_lens}, held fixed"
        yield f"internal policy of layer {layer}", f"{length}, norm {args.internal_norm}{lens}"
    if not spans or spans[-1][-1] is not None:
        reached = not spans or args.max_steps <= 0 or spans[-1][-1] < args.max_steps
        then = "then" if reached else f"not reached in {_count(args.max_steps, 'optimizer step')}"
        yield "final policy (GRPO)", then if spans else "throughout"
    yield from signal_rows(args)
    frozen = args.frozen_layers(len(factors))
    if set(factors.values()) - {1.0} or frozen:
        yield from describe_rates(factors, frozen)
    if args.trained_layers:
        yield "embedding, norm and unembedding", "frozen"


def _count(number: int | float, noun: str) -> str:
    return f"{number:g} {noun}{'' if number == 1 else 's'}"


def schedule_contents(args: BuPOConfig, spans: Sequence[Span], factors: Factors, choice: LayerChoice | None) -> dict[str, Any]:
    """What `schedule.json` keeps: phases in rollouts and optimizer steps, norm and lens, which layers learn and at which rates, the seed,
    and the choice."""
    phases = [
        {
            "layer": layer,
            "rollouts": None if rollouts == WHOLE_RUN else rollouts,
            "first_optimizer_step": first,
            "last_optimizer_step": last,
        }
        for layer, rollouts, first, last in spans
    ]
    return {
        "norm": args.internal_norm,
        "lens": args.internal_lens,
        "optimizer_steps_per_rollout": args.optimizer_steps_per_rollout,
        "phases": phases,
        "train_layers": args.train_layers,
        "freeze_layers": args.freeze_layers,
        "layer_lr_factors": {str(layer): factor for layer, factor in factors.items() if factor != 1},
        **signal_contents(args),
        "seed": args.seed,
        "choice": choice.to_dict() if choice else None,
    }


def require_same_schedule(file: Path, contents: dict[str, Any]) -> None:
    """Raises TrainingError if the run that left `file` had another objective than the run that is to go on with it."""
    before = {"lens": "logit", "train_layers": ALL, "distillation": None, "token_mask": None, **read_schedule(file)}
    compared = [*COMPARED, "optimizer_steps_per_rollout"] if contents["phases"] else COMPARED
    for name in compared:
        if before.get(name, contents[name]) != contents[name]:
            raise TrainingError(
                f"{file} says that the run to go on with had another schedule: {name} was {json.dumps(before[name])} and is "
                f"{json.dumps(contents[name])}: restore its settings, or take a new output_dir"
            )
