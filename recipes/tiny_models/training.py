"""Supervised training of a small decoder on worked solutions, resumable to the same weights."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from layerlens.errors import TrainingError
from layerlens.prompts.arithmetic.kinds import DIFFICULTIES
from recipes.tiny_models.batches import BUCKET_STEPS, IGNORE_INDEX, Batch, bucket_batches

CURVE_STEPS = 32
"""Steps that one point of the training curve averages over."""


@dataclass(frozen=True)
class TrainingSettings:
    """How a model is trained. On one machine, two trainings with equal settings end with the same weights.

    Raises TrainingError for a setting that must be above 0 and is not.
    """

    model: str
    """`tiny-qwen3` or `tiny-llama`."""
    steps: int = 5400
    """Optimizer steps. With fewer than `restart`, training ends before the learning rate has fallen to zero."""
    seed: int = 0
    """Seed of the initial weights and of the training problems."""
    batch_size: int = 16
    """Problems per step."""
    learning_rate: float = 3e-3
    """The highest learning rate, reached at the end of the warm-up."""
    ramp: float = 0.4
    """Share of the horizon after which problems of all difficulties are drawn; until then the harder ones are added one after another."""
    warmup: int = 100
    """Steps of linear warm-up. A half cosine follows."""
    horizon: int = 3200
    """Step at which the cosine would have fallen to a tenth. `ramp` is a share of it."""
    floor: float = 0.18
    """Share of the highest learning rate below which the cosine does not fall."""
    restart: int = 4200
    """Step at which a second round begins, from a quarter of the highest learning rate linearly to zero at the last step."""
    decay: int = 700
    """Steps before `restart` over which the learning rate falls linearly to zero."""
    weight_decay: float = 0.05
    """Weight decay of AdamW, on matrices alone."""
    betas: tuple[float, float] = (0.9, 0.98)
    """The two decay rates of AdamW's averages."""
    clip: float = 1.0
    """The largest norm of the gradient of all weights together; a larger one is scaled down."""
    shape: dict[str, int] = field(default_factory=dict)
    """Entries of `models.SHAPE` to override."""

    def __post_init__(self) -> None:
        for name in ("steps", "batch_size", "warmup", "horizon", "decay", "ramp", "learning_rate", "clip"):
            if getattr(self, name) <= 0:
                raise TrainingError(f"expected {name} above 0, got {getattr(self, name)}")

    def learning_rate_at(self, step: int) -> float:
        """The learning rate of a step, counted from 0."""
        if step < self.warmup:
            return self.learning_rate * (step + 1) / self.warmup
        if step >= self.restart:
            return self.learning_rate * 0.25 * (self.steps - step) / (self.steps - self.restart)
        done = (step - self.warmup) / max(1, self.horizon - self.warmup)
        cosine = 0.1 + 0.9 * 0.5 * (1 + math.cos(math.pi * min(1.0, done)))
        return self.learning_rate * max(self.floor, cosine) * min(1.0, (self.restart - step) / self.decay)

    def difficulties_at(self, step: int) -> tuple[int, ...]:
        """The difficulties of the problems at a step, counted from 0."""
        entered = 1 + int((len(DIFFICULTIES) - 1) * step / (self.ramp * self.horizon))
        return DIFFICULTIES[:entered]


@dataclass(frozen=True)
class CurvePoint:
    """Training after `step` steps: the mean `loss` in nats per token, `tokens` (without padding) and `seconds` since the start."""

    step: int
    loss: float
    tokens: int
    seconds: float


def solution_loss(model: PreTrainedModel, batch: Batch) -> Tensor:
    """The mean negative log-likelihood of the solutions' tokens, in nats per token. Only their positions are decoded into logits."""
    hidden = model.model(input_ids=batch.ids, use_cache=False).last_hidden_state[:, :-1]
    targets = batch.labels[:, 1:]
    in_solution = targets != IGNORE_INDEX
    return F.cross_entropy(model.lm_head(hidden[in_solution]), targets[in_solution])


def train(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    settings: TrainingSettings,
    checkpoint: Path,
    resume: bool = True,
    checkpoint_every: int = 200,
    on_step: Callable[[CurvePoint], None] = lambda point: None,
) -> list[CurvePoint]:
    """Trains `model` in place and returns its training curve, one point per `CURVE_STEPS` steps.

    Args:
        model: an untrained model from `new_model`.
        tokenizer: of the model.
        settings: how to train.
        checkpoint: the file that holds what is needed to resume; written under a temporary name, then renamed.
        resume: whether to continue from the checkpoint, if there is one.
        checkpoint_every: steps between two checkpoints.
        on_step: called after each step, with the loss of that step alone.

    Raises TrainingError if the checkpoint was made with other settings.
    """
    device = model.device
    decayed = [p for p in model.parameters() if p.ndim > 1]
    others = [p for p in model.parameters() if p.ndim <= 1]
    groups = [{"params": decayed, "weight_decay": settings.weight_decay}, {"params": others, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=settings.learning_rate, betas=settings.betas, fused=True)
    state: dict[str, Any] = {"step": 0, "tokens": 0, "seconds": 0.0, "curve": [], "recent": []}
    if resume and checkpoint.exists():
        state = _load(checkpoint, settings, model, optimizer)
    model.train()
    started = time.monotonic() - state["seconds"]
    batches: list[Batch] = []
    for step in range(state["step"], settings.steps):
        if not batches or step % BUCKET_STEPS == 0:
            bucket = step // BUCKET_STEPS
            difficulties = settings.difficulties_at(bucket * BUCKET_STEPS)
            batches = bucket_batches(tokenizer, settings.seed, bucket, settings.batch_size, difficulties)
        batch = batches[step % BUCKET_STEPS].to(device)
        for group in optimizer.param_groups:
            group["lr"] = settings.learning_rate_at(step)
        loss = solution_loss(model, batch)
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(model.parameters(), settings.clip)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        state["step"], state["tokens"], state["seconds"] = step + 1, state["tokens"] + batch.tokens, time.monotonic() - started
        state["recent"].append(loss.item())
        if (step + 1) % CURVE_STEPS == 0 or step + 1 == settings.steps:
            mean = sum(state["recent"]) / len(state["recent"])
            state["curve"].append(CurvePoint(step + 1, mean, state["tokens"], state["seconds"]))
            state["recent"] = []
        if (step + 1) % checkpoint_every == 0 or step + 1 == settings.steps:
            _save(checkpoint, settings, model, optimizer, state)
        on_step(CurvePoint(step + 1, loss.item(), state["tokens"], state["seconds"]))
    model.eval()
    curve: list[CurvePoint] = state["curve"]
    return curve


def _save(path: Path, settings: TrainingSettings, model: PreTrainedModel, optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(".partial")
    curve = [asdict(point) for point in state["curve"]]
    torch.save(
        {
            "settings": asdict(settings),
            "state": state | {"curve": curve},
            "model": model.state_dict(),
            "optimizer": optimizer.state_dict(),
        },
        temporary,
    )
    os.replace(temporary, path)


def _load(path: Path, settings: TrainingSettings, model: PreTrainedModel, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    saved = torch.load(path, map_location=model.device, weights_only=True)
    if saved["settings"] != asdict(settings):
        changed = sorted(k for k, v in asdict(settings).items() if saved["settings"].get(k) != v)
        raise TrainingError(f"{path} was made with other settings ({', '.join(changed)}); pass --no-resume or another --out")
    model.load_state_dict(saved["model"])
    optimizer.load_state_dict(saved["optimizer"])
    state: dict[str, Any] = saved["state"]
    return state | {"curve": [CurvePoint(**point) for point in saved["state"]["curve"]]}
