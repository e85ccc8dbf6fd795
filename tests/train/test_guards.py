"""What stops training in one line, before an optimizer step is taken on it."""

from __future__ import annotations

import asyncio
import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from layerlens.errors import TrainingError
from layerlens.rewards.rewards import Counts
from layerlens.train import BuPOTrainer
from layerlens.train.guards import require_finite_gradient, require_rewards
from tests.support.training import make_trainer

pytestmark = pytest.mark.filterwarnings("default")  # TRL's and accelerate's own

INTERNAL = {"internal_layer": 2, "internal_rollouts": -1}


def stops(trainer: BuPOTrainer, message: str) -> None:
    """Trains, and checks that training stops with this message on one line, at weights that are finite."""
    with pytest.raises(TrainingError, match=message) as refusal:
        trainer.train()
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize("settings", [{}, INTERNAL])
@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_loss_that_is_not_finite_takes_no_step(bad: float, settings: dict[str, Any], tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path, max_steps=3, **settings)
    scored = trainer._generate_and_score_completions

    def spoiled(inputs: Any) -> dict[str, Any]:
        batch = scored(inputs)
        if trainer.state.global_step == 1:
            batch["advantages"][0] = bad
        return batch

    trainer._generate_and_score_completions = spoiled
    stops(trainer, "the loss is not a finite number in optimizer step 2, which was not taken: go on from the last checkpoint")
    assert trainer.state.global_step == 1
    assert all(weight.isfinite().all() for weight in trainer.model.parameters())


def test_a_gradient_that_is_not_finite_takes_no_step(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path, **INTERNAL)
    trainer.model.model.layers[0].mlp.up_proj.weight.register_hook(lambda gradient: gradient * math.inf)
    stops(trainer, "the gradient is not finite in optimizer step 1")
    assert all(weight.isfinite().all() for weight in trainer.model.parameters())
    require_finite_gradient(torch.tensor(1e30), 1)
    require_finite_gradient(None, 1)  # DeepSpeed's, which it may not tell


def test_a_weight_that_is_not_finite_stops_before_anything_is_sampled(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path)
    with torch.no_grad():
        trainer.model.model.layers[3].mlp.up_proj.weight[0, 0] = math.nan
    stops(trainer, "weights are not finite after optimizer step 0")


@pytest.mark.parametrize("save", [{}, {"save_strategy": "steps", "save_steps": 1}], ids=["at the end", "before a checkpoint"])
def test_a_last_step_that_breaks_weights_ends_in_one_line_and_is_not_saved(save: dict[str, Any], tmp_path: Path) -> None:
    stops(make_trainer(tmp_path, max_steps=1, learning_rate=1e39, **save), "weights are not finite after optimizer step 1")
    assert not list(tmp_path.glob("checkpoint-*"))


def failing(completions: list[str], **columns: Any) -> list[float | None]:
    return [None] * len(completions)


async def slowly(completions: list[str], **columns: Any) -> list[float]:
    await asyncio.sleep(0)
    return [float(len(text) % 5) for text in completions]


def with_rewards(out: Path, *rewards: Any, **settings: Any) -> BuPOTrainer:
    trainer = make_trainer(out, max_steps=1, per_device_train_batch_size=8, **settings)
    data = {"train_dataset": trainer.train_dataset, "eval_dataset": trainer.train_dataset.select(range(2))}
    return BuPOTrainer(trainer.model, list(rewards), trainer.args, **data, processing_class=trainer.processing_class)


def test_a_rollout_of_which_every_reward_failed_is_no_step(tmp_path: Path) -> None:
    stops(with_rewards(tmp_path, failing), r"every reward of a rollout's 8 answers failed: failing \(it returned None or NaN for each\)")
    with_rewards(tmp_path, failing, slowly).train()  # one that works is enough


def test_a_problem_that_no_reward_scores_is_passed_over_as_in_trl(tmp_path: Path) -> None:
    with_rewards(tmp_path, failing, num_generations=8).train()
    trainer = with_rewards(tmp_path, failing)
    trainer.evaluate()  # of however many problems
    assert trainer.state.log_history[-1]["eval_reward"] is None


class Checked:
    """Stands for a `Reward` that runs a check in a process: it scores 0 and counts a failure for the first `fail` answers."""

    __name__ = "checked"

    def __init__(self, fail: int):
        self.fail, self.counts = fail, Counts()

    def __call__(self, completions: list[str], **columns: Any) -> list[float]:
        self.counts.answers += len(completions)
        self.counts.raised += self.fail
        self.counts.last_error = "ValueError: no"
        return [0.0] * len(completions)


def test_checks_that_all_failed_count_as_no_reward(tmp_path: Path) -> None:
    stops(with_rewards(tmp_path, Checked(8)), r"every reward of a rollout's 8 answers failed: checked \(ValueError: no\); try the reward")
    with_rewards(tmp_path, Checked(7)).train()


def test_a_reward_that_failed_on_one_process_alone_does_not_stop_the_run() -> None:
    here, there = Checked(2), torch.tensor([[True], [False]])
    together = SimpleNamespace(gather=lambda failed: there)
    scores = require_rewards(lambda: torch.tensor([[0.0], [0.0], [1.0], [0.0]]), [here], ["checked"], together, 2)
    assert scores.tolist() == [[0], [0], [1], [0]]
