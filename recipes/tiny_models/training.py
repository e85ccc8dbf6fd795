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

from layerlens.errors import LayerLensError
from layerlens.prompts.arithmetic.kinds import DIFFICULTIES
from recipes.tiny_models.batches import IGNORE, POOL, Batch, pool

CURVE_EVERY = 32
"""Steps that one point of the training curve averages over."""


class TrainingError(LayerLensError, ValueError):
    """A training that cannot start as asked."""


@dataclass(frozen=True)
class TrainingSettings:
    """How a model is trained; two trainings with equal settings end on the same weights on the same machine."""

    model: str
    """`tiny-qwen3` or `tiny-llama`."""
    steps: int = 5400
    """Optimizer steps; with fewer than `restart`, training ends before the learning rate has fallen."""
    seed: int = 0
    """Seed of the first weights and of the training problems."""
    batch_size: int = 16
    """Problems a step."""
    learning_rate: float = 3e-3
    """Highest learning rate, reached after the warm-up."""
    ramp: float = 0.4
    """Share of the horizon after which all difficulties are in; the harder ones enter one after another until then."""
    warmup: int = 100
    """Steps of linear warm-up; half a cosine follows."""
    horizon: int = 3200
    """Step at which the cosine would reach a tenth, and before which the harder difficulties enter."""
    floor: float = 0.18
    """Share of the learning rate at which the cosine stops and stays."""
    restart: int = 4200
    """Step at which a second round starts: from a quarter of the learning rate linearly to zero at the last step."""
    decay: int = 700
    """Steps before the restart, over which the learning rate falls linearly to zero."""
    weight_decay: float = 0.05
    """AdamW's, on matrices alone."""
    betas: tuple[float, float] = (0.9, 0.98)
    """AdamW's two decay rates."""
    clip: float = 1.0
    """Largest norm of the whole gradient."""
    shape: dict[str, int] = field(default_factory=dict)
    """Entries of `models.SHAPE` to override."""

    def __post_init__(self) -> None:
        for name in ("steps", "batch_size", "warmup", "horizon", "decay", "ramp", "learning_rate", "clip"):
            if getattr(self, name) <= 0:
                raise TrainingError(f"expected {name} above 0, got {getattr(self, name)}")

    def rate(self, step: int) -> float:
        """The learning rate of a step, counted from 0."""
        if step < self.warmup:
            return self.learning_rate * (step + 1) / self.warmup
        if step >= self.restart:
            return self.learning_rate * 0.25 * (self.steps - step) / (self.steps - self.restart)
        done = (step - self.warmup) / max(1, self.horizon - self.warmup)
        cosine = 0.1 + 0.9 * 0.5 * (1 + math.cos(math.pi * min(1.0, done)))
        return self.learning_rate * max(self.floor, cosine) * min(1.0, (self.restart - step) / self.decay)

    def difficulties(self, step: int) -> tuple[int, ...]:
        """The difficulties drawn at a step, counted from 0."""
        entered = 1 + int((len(DIFFICULTIES) - 1) * step / (self.ramp * self.horizon))
        return DIFFICULTIES[:entered]


@dataclass(frozen=True)
class Progress:
    """State after a step: `loss` in nats a token of this step, `tokens` (without padding) and `seconds` since the start."""

    step: int
    loss: float
    tokens: int
    seconds: float


def loss_of(model: PreTrainedModel, batch: Batch) -> Tensor:
    """Mean negative log-likelihood in nats over the solutions' tokens; the vocabulary is read for these alone."""
    hidden = model.model(input_ids=batch.ids, use_cache=False).last_hidden_state[:, :-1]
    targets = batch.labels[:, 1:]
    kept = targets != IGNORE
    return F.cross_entropy(model.lm_head(hidden[kept]), targets[kept])


def train(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    settings: TrainingSettings,
    checkpoint: Path,
    resume: bool = True,
    checkpoint_every: int = 200,
    on_step: Callable[[Progress], None] = lambda progress: None,
) -> list[Progress]:
    """Train `model` in place and return its curve: the mean loss over every `CURVE_EVERY` steps.

    `checkpoint` is written whole (temporary name, then renamed) every `checkpoint_every` steps. With `resume`, a
    checkpoint of the same settings is continued, one of other settings is refused.
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
        if not batches or step % POOL == 0:
            index = step // POOL
            batches = pool(tokenizer, settings.seed, index, settings.batch_size, settings.difficulties(index * POOL))
        batch = batches[step % POOL].to(device)
        for group in optimizer.param_groups:
            group["lr"] = settings.rate(step)
        loss = loss_of(model, batch)
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(model.parameters(), settings.clip)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        state["step"], state["tokens"], state["seconds"] = step + 1, state["tokens"] + batch.tokens, time.monotonic() - started
        state["recent"].append(loss.item())
        if (step + 1) % CURVE_EVERY == 0 or step + 1 == settings.steps:
            mean = sum(state["recent"]) / len(state["recent"])
            state["curve"].append(Progress(step + 1, mean, state["tokens"], state["seconds"]))
            state["recent"] = []
        if (step + 1) % checkpoint_every == 0 or step + 1 == settings.steps:
            _save(checkpoint, settings, model, optimizer, state)
        on_step(Progress(step + 1, loss.item(), state["tokens"], state["seconds"]))
    model.eval()
    curve: list[Progress] = state["curve"]
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
    return state | {"curve": [Progress(**point) for point in saved["state"]["curve"]]}
