"""What stops training in one line: numbers that are not finite, and a rollout of which every reward failed.

Each check is made by all processes together, so that all of them stop.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from layerlens.errors import TrainingError

REMEDY = "go on from the last checkpoint with a lower learning_rate or max_grad_norm"


def require_finite_loss(loss: Tensor, accelerator: Any, step: int) -> None:
    """Raises TrainingError if the loss of any process is NaN or infinite. `step` is the optimizer step, from 1."""
    if not accelerator.gather(loss.detach().isfinite().reshape(1)).all():
        raise TrainingError(f"the loss is not a finite number in optimizer step {step}, which was not taken: {REMEDY}")


def require_finite_gradient(norm: Any, step: int) -> None:
    """Raises TrainingError if the norm of the gradient, which all processes share, is NaN or infinite; None is not checked."""
    if norm is not None and not math.isfinite(float(norm)):
        raise TrainingError(f"the gradient is not finite in optimizer step {step}, which was not taken: {REMEDY}")


def require_finite_weights(model: nn.Module, accelerator: Any, step: int) -> None:
    """Raises TrainingError if a trained weight on any process is NaN or infinite after `step` optimizer steps."""
    finite = torch.ones(1, dtype=torch.bool, device=accelerator.device)
    for weight in model.parameters():
        if weight.requires_grad:
            local = weight.to_local() if isinstance(weight, DTensor) else weight
            finite &= local.detach().isfinite().all().to(finite.device)
    if not accelerator.gather(finite).all():
        raise TrainingError(f"weights are not finite after optimizer step {step}: {REMEDY}")


def require_rewards(score: Callable[[], Tensor], rewards: Sequence[Any], names: Sequence[str], accelerator: Any, group: int) -> Tensor:
    """Returns the rewards that `score` gives, of all processes: answers x reward functions.

    Args:
        score: calls each of `rewards` on this process's answers. NaN stands for an answer that a function gave no reward.
        rewards, names: the reward functions; a `layerlens.rewards.Reward` counts the checks that hung or raised, which score 0.
        group: answers to one problem.

    Raises TrainingError if each function failed on every answer of the rollout: a step on such rewards would train on nothing. A function
    that returns None for the one problem of a rollout passes it over, as TRL's `accuracy_reward` does with a problem that it cannot read.
    """
    before = [_checks(reward) for reward in rewards]
    scores = score()
    failed = torch.tensor(
        [answers > 0 and failures == answers for answers, failures in _since(before, rewards)], dtype=torch.bool, device=scores.device
    )
    passed_over = scores.isnan().all(0) if len(scores) > group else torch.zeros_like(failed)
    everywhere = accelerator.gather(failed[None]).all(0) | passed_over
    if everywhere.all():
        errors = [f"{name} ({_last_error(reward)})" for name, reward in zip(names, rewards, strict=True)]
        raise TrainingError(f"every reward of a rollout's {len(scores)} answers failed: {', '.join(errors)}; try the reward on one answer")
    return scores


def _checks(reward: Any) -> tuple[int, int]:
    """Answers checked so far, and failures among them; zeros for a function that does not count."""
    counts = getattr(reward, "counts", None)
    return (0, 0) if counts is None else (counts.answers, counts.hung + counts.raised)


def _since(before: Sequence[tuple[int, int]], rewards: Sequence[Any]) -> list[tuple[int, int]]:
    return [(now[0] - then[0], now[1] - then[1]) for then, now in zip(before, map(_checks, rewards), strict=True)]


def _last_error(reward: Any) -> str:
    counts = getattr(reward, "counts", None)
    return (counts.last_error if counts is not None else "") or "it returned None or NaN for each"
