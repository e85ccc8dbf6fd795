"""A BuPO trainer on a tiny random model, ready to take steps on the CPU."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from torch import Tensor, nn

from layerlens.models import FittedLens
from layerlens.train import BuPOConfig, BuPOTrainer
from layerlens.train.trainer import LAYER
from tests.support.tiny_models import random_ids, tiny_model, tiny_tokenizer


def reward(completions: list[str], **kwargs: Any) -> list[float]:
    """A reward that differs between completions and costs nothing."""
    return [float(sum(map(ord, text)) % 7) for text in completions]


def prompts(n: int = 16) -> Dataset:
    return Dataset.from_dict({"prompt": [" ".join(f"w{i}" for i in random_ids(5, seed)) for seed in range(n)]})


def make_trainer(out: Path, model: nn.Module | str | None = None, **settings: Any) -> BuPOTrainer:
    defaults: dict[str, Any] = {
        "per_device_train_batch_size": 4, "num_generations": 4, "max_completion_length": 6, "max_steps": 2, "learning_rate": 1e-2,
        "weight_decay": 0.1, "use_cpu": True, "bf16": False, "report_to": "none", "save_strategy": "no", "logging_steps": 1,
        "disable_tqdm": True,
        "gradient_checkpointing": False, "lr_scheduler_type": "constant", "seed": 0,
    }  # fmt: skip
    given = {name: settings.pop(name) for name in ("peft_config", "optimizers") if name in settings}
    args = BuPOConfig(output_dir=str(out), **{**defaults, **settings})
    return BuPOTrainer(model or tiny_model("qwen3"), reward, args, train_dataset=prompts(), processing_class=tiny_tokenizer(None), **given)


def trained_layers(trainer: BuPOTrainer, checkpoint: Path | None = None) -> list[int]:
    """Trains, and returns the layer of each micro-batch; 0 for the final policy."""
    seen: list[int] = []
    compute = trainer._compute_loss

    def watch(model: nn.Module, inputs: dict[str, Any]) -> Tensor:
        seen.append(int(inputs.get(LAYER, 0)))
        return compute(model, inputs)

    trainer._compute_loss = watch
    trainer.train(resume_from_checkpoint=None if checkpoint is None else str(checkpoint))
    return seen


def fixed_batch(seed: int = 0, rows: int = 4, prompt: int = 5, answer: int = 6) -> dict[str, Tensor]:
    """A scored generation batch as TRL makes it, with padding on both sides."""
    generator = torch.Generator().manual_seed(seed)
    completion_mask = torch.ones(rows, answer, dtype=torch.long)
    completion_mask[0, 4:] = 0
    prompt_mask = torch.ones(rows, prompt, dtype=torch.long)
    prompt_mask[1, :2] = 0
    return {
        "prompt_ids": torch.randint(8, 200, (rows, prompt), generator=generator),
        "prompt_mask": prompt_mask,
        "completion_ids": torch.randint(8, 200, (rows, answer), generator=generator),
        "completion_mask": completion_mask,
        "advantages": torch.randn(rows, generator=generator),
        "num_items_in_batch": completion_mask.sum(),
    }


def plain_logps(model: nn.Module, batch: dict[str, torch.Tensor], layer: int, norm: str, lens: FittedLens | None = None) -> torch.Tensor:
    """log softmax(E_u N(T H^layer + b)) of the completions, from a forward through all blocks; 0 on padding."""
    ids = torch.cat([batch["prompt_ids"], batch["completion_ids"]], 1)
    mask = torch.cat([batch["prompt_mask"], batch["completion_mask"]], 1)
    states: dict[int, torch.Tensor] = {}
    hooks = [
        block.register_forward_hook(lambda m, a, out, n=n: states.update({n: out if isinstance(out, torch.Tensor) else out[0]}))
        for n, block in enumerate(model.model.layers, 1)
    ]
    model.model(input_ids=ids, attention_mask=mask, use_cache=False)
    for hook in hooks:
        hook.remove()
    h = states[layer] if lens is None else states[layer] @ lens.matrices[layer, "resid_post"].T + lens.biases.get((layer, "resid_post"), 0)
    h = h if norm == "none" else model.model.norm(h)
    logp = model.lm_head(h).log_softmax(-1)[:, :-1]
    width = batch["completion_ids"].size(1)
    return logp.gather(-1, ids[:, 1:, None])[..., 0][:, -width:] * batch["completion_mask"]
