"""The correction for a sampler that differs a little from the trainer (TRL's for vLLM) in the internal phase."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from trl import GRPOTrainer

from layerlens.train import BuPOTrainer
from layerlens.train.trainer import LAYER
from tests.support.tiny_models import random_ids
from tests.support.training import make_trainer, plain_logps

pytestmark = pytest.mark.filterwarnings("default")  # TRL's and accelerate's own

MODES = ("token_truncate", "token_mask", "sequence_truncate", "sequence_mask")


class Sampler:
    """What vLLM is to TRL: completions of the final policy, with log-probabilities that differ from the trainer's by `noise`."""

    def __init__(self, trainer: BuPOTrainer, noise: float):
        self.trainer, self.noise, self.synced = trainer, noise, 0
        self.generator = torch.Generator().manual_seed(0)

    def sync_weights(self) -> None:
        self.synced += 1

    @torch.no_grad()
    def generate(self, prompts: list[list[int]], images: Any, num_generations: int, profiler: Any) -> tuple[Any, ...]:
        answers = [random_ids(3 + number % 4, seed=number) for number in range(len(prompts))]
        logps = []
        for prompt, answer in zip(prompts, answers, strict=True):
            ids = torch.tensor([prompt + answer])
            log_probs = self.trainer.model(input_ids=ids).logits.log_softmax(-1)[0, len(prompt) - 1 : -1]
            chosen = log_probs.gather(-1, torch.tensor(answer)[:, None])[:, 0]
            logps.append(chosen + self.noise * torch.randn(len(answer), generator=self.generator))
        return None, answers, [[[value] for value in row.tolist()] for row in logps], None


def with_sampler(out: Path, noise: float, **settings: Any) -> BuPOTrainer:
    """A trainer in its internal phase that samples from a stand-in for vLLM."""
    trainer = make_trainer(out, internal_layer=2, internal_rollouts=-1, **settings)
    trainer.use_vllm, trainer.vllm_generation, trainer._last_loaded_step = True, Sampler(trainer, noise), -1
    trainer.current_gradient_accumulation_steps = trainer.args.gradient_accumulation_steps
    trainer.model.train()
    return trainer


def rows(trainer: BuPOTrainer) -> list[dict[str, Any]]:
    return [row for row in trainer.train_dataset.select([0]) for _ in range(4)]


def mean_ratio(trainer: BuPOTrainer) -> float:
    return float(trainer._metrics["train"]["sampling/importance_sampling_ratio/mean"][-1])


def test_the_sampler_is_compared_with_the_final_policy(tmp_path: Path) -> None:
    trainer = with_sampler(tmp_path, 0.02, vllm_importance_sampling_mode="token_truncate", vllm_importance_sampling_clip_max=1e6)
    batch = trainer._generate_and_score_completions(rows(trainer))
    assert int(batch[LAYER]) == 2
    assert "sampling_per_token_logps" not in batch, "those of the final policy, which no internal loss may be compared with"
    assert trainer.vllm_generation.synced == 1
    ours = mean_ratio(trainer)
    trainer._active_layer = 2  # what a trainer would do that puts its internal log-probabilities there
    GRPOTrainer._generate_and_score_completions(trainer, rows(trainer))
    wrong = mean_ratio(trainer)
    assert abs(ours - 1) < 0.02
    assert abs(wrong - 1) > 0.5


def expected_ratio(trainer: BuPOTrainer, batch: dict[str, Tensor], sampled: Tensor, mode: str, low: float, high: float) -> Tensor:
    """exp(log π_final − log π_sampler) per token or per response, clamped to the caps or set to 0 beyond them."""
    mask = batch["completion_mask"]
    gap = (plain_logps(trainer.model, batch, 4, "final") - sampled) * mask
    ratio = (gap.sum(1, keepdim=True) if mode.startswith("sequence") else gap).exp()
    return ratio.clamp(low, high) if mode.endswith("truncate") else ratio * ((ratio >= low) & (ratio <= high))


@pytest.mark.parametrize(
    ("mode", "iterations", "upper"),
    [
        *((mode, iterations, "vllm_importance_sampling_clip_max") for mode in MODES for iterations in (1, 2)),
        ("token_truncate", 1, "vllm_importance_sampling_cap"),  # its name in earlier versions of TRL
    ],
)
def test_the_importance_ratio_of_the_sampler_weighs_the_internal_loss(mode: str, iterations: int, upper: str, tmp_path: Path) -> None:
    low, high = 0.8, 1.1
    trainer = with_sampler(
        tmp_path, 0.3, vllm_importance_sampling_mode=mode, vllm_importance_sampling_clip_min=low, num_iterations=iterations,
        loss_type="grpo", **{upper: high},
    )  # fmt: skip
    sampled: list[Tensor] = []
    correct = GRPOTrainer._generate_and_score_completions

    def remember(self: GRPOTrainer, inputs: Any) -> dict[str, Tensor]:
        batch = correct(self, inputs)
        sampled.append(batch["sampling_per_token_logps"])
        return batch

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(GRPOTrainer, "_generate_and_score_completions", remember)
        batch = trainer._generate_and_score_completions(rows(trainer))
    batch["advantages"] = torch.tensor([1.5, -0.5, 0.7, -2.0])
    with torch.no_grad():
        expected = expected_ratio(trainer, batch, sampled[0], mode, low, high)
    torch.testing.assert_close(batch["importance_sampling_ratio"] * batch["completion_mask"], expected * batch["completion_mask"])
    capped = high if mode.endswith("truncate") else 0.0
    assert torch.isclose(expected, torch.tensor(capped)).any(), "some ratio reaches its cap"

    loss = trainer._compute_loss(trainer.model, batch)
    loss.backward()
    ours = {name: weight.grad.clone() for name, weight in trainer.model.named_parameters() if weight.grad is not None}
    trainer.model.zero_grad()
    logps, mask = plain_logps(trainer.model, batch, 2, "none"), batch["completion_mask"]
    ratio = (logps - logps.detach()).exp()  # at the first update of a batch the policy is still the old one
    by_hand = ((-ratio * batch["advantages"][:, None] * expected * mask).sum(1) / mask.sum(1)).mean()
    torch.testing.assert_close(loss.detach(), by_hand.detach(), atol=1e-6, rtol=1e-5)
    by_hand.backward()
    for name, gradient in ours.items():
        torch.testing.assert_close(gradient, dict(trainer.model.named_parameters())[name].grad, atol=1e-6, rtol=1e-4, msg=name)
    assert not any(".layers.3." in name for name in ours)


def test_a_run_with_a_sampler_logs_its_ratio_in_both_phases(tmp_path: Path) -> None:
    trainer = with_sampler(tmp_path, 0.02, vllm_importance_sampling_mode="token_truncate", max_steps=4)
    trainer.schedule = type(trainer.schedule)(((2, 2),))
    trainer.train()
    logged = [entry for entry in trainer.state.log_history if "reward" in entry]
    assert [entry["bupo/internal_layer"] for entry in logged] == [2, 2, 0, 0]
    for entry in logged:
        assert abs(entry["sampling/importance_sampling_ratio/mean"] - 1) < 0.03
        assert 0 < entry["sampling/sampling_logp_difference/mean"] < 0.1
