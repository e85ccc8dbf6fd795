"""The README.md of a trained model."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

from trl.trainer.utils import get_config_model_id

import layerlens

if TYPE_CHECKING:
    from layerlens.train.trainer import BuPOTrainer

PAPER = "[Bottom-up Policy Optimization](https://arxiv.org/abs/2512.19673)"


def model_card(trainer: BuPOTrainer, name: str, dataset: str | None, tags: list[str]) -> str:
    """The card in Markdown, with the fields that the hub reads in front."""
    args, base = trainer.args, get_config_model_id(trainer.model.config) or ""
    on_hub = base if base and not os.path.isdir(base) else None
    of = f"[{base}](https://huggingface.co/{base})" if on_hub else f"`{os.path.basename(os.path.normpath(base))}`" if base else "a model"
    front = {"library_name": "transformers", "base_model": on_hub, "datasets": dataset, "model_name": name}
    method = f"BuPO ({PAPER})" if trainer.schedule.phases else "GRPO"
    rewards = ", ".join(f"`{each}`" for each in trainer.reward_func_names)
    return "\n".join([
        "---", *(f"{key}: {value}" for key, value in front.items() if value), "tags:", *(f"- {tag}" for tag in tags), "---", "",
        f"# {name}", "", f"{of}, trained with {method} by layerlens {layerlens.__version__} on TRL.", "",
        "| trained | when, or how |", "|---|---|", *(f"| {what} | {_cell(how)} |" for what, how in trainer.plan()), "",
        f"Optimizer steps: {trainer.state.global_step}. Rewards: {rewards}. Learning rate {args.learning_rate:g}, seed {args.seed}. "
        "`settings.json` and `schedule.json` have the rest.", "",
        "```sh", f"layerlens plot {name}", f"layerlens analyze {name} prompts.jsonl --norm final --out run", "```", "",
    ])  # fmt: skip


def _cell(text: Any) -> str:
    return str(text).replace("|", "\\|")
