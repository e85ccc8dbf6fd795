"""The cost of training an internal policy beside that of GRPO: loss and backward of BuPOTrainer on one batch, on random models.

    python benchmarks/step_cost.py > benchmarks/step_cost.json

Every round times GRPO and each internal layer once, in turn; the best of all rounds counts, in processor time of one thread,
which other work on the machine disturbs least. What skipping blocks must save is measured apart from the trainer: forward
and backward of the blocks above the layer, one after the other, on the states that they get in the model (`expected_ratio`).
Two costs are left out: generation, which does not depend on the phase, and the optimizer's update, which is smaller in the
internal phase.
"""

from __future__ import annotations

import argparse
import json
import platform
import sys
import tempfile
import time
from collections.abc import Callable
from typing import Any

import torch
from datasets import Dataset
from torch import Tensor
from transformers import AutoTokenizer, Qwen3Config, Qwen3ForCausalLM

from layerlens.models import decoder_of
from layerlens.storage.bundled import bundled_model
from layerlens.train import BuPOConfig, BuPOTrainer
from layerlens.train.trainer import LAYER

SHAPES: dict[str, dict[str, Any]] = {
    "tiny-qwen3": {
        "vocab_size": 1024, "hidden_size": 128, "intermediate_size": 256, "num_hidden_layers": 12,
        "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 32,
    },
    "deep, small vocabulary": {
        "vocab_size": 512, "hidden_size": 512, "intermediate_size": 1536, "num_hidden_layers": 24,
        "num_attention_heads": 8, "num_key_value_heads": 4, "head_dim": 64, "tie_word_embeddings": True,
    },
    "Qwen3-0.6B's proportions, a quarter as wide": {
        "vocab_size": 37984, "hidden_size": 256, "intermediate_size": 768, "num_hidden_layers": 28,
        "num_attention_heads": 8, "num_key_value_heads": 4, "head_dim": 64, "tie_word_embeddings": True,
    },
}  # fmt: skip
"""Keys of Qwen3Config."""

ROWS, PROMPT, ANSWER = 4, 32, 96
"""Completions in a batch, and the tokens of each prompt and answer."""


def make_trainer(shape: dict[str, Any], out: str) -> BuPOTrainer:
    model = Qwen3ForCausalLM(Qwen3Config(**shape))
    args = BuPOConfig(
        output_dir=out, internal_layer=1, internal_rollouts=1, per_device_train_batch_size=ROWS, num_generations=ROWS,
        gradient_checkpointing=False, bf16=False, use_cpu=True, report_to="none",
    )  # fmt: skip
    tokenizer = AutoTokenizer.from_pretrained(bundled_model("tiny-qwen3"))
    return BuPOTrainer(model, _no_reward, args, train_dataset=Dataset.from_dict({"prompt": ["1 + 1"]}), processing_class=tokenizer)


def _no_reward(completions: list[str], **columns: Any) -> list[float]:
    return [0.0] * len(completions)


def batch(vocabulary: int) -> dict[str, Tensor]:
    """Scored completions of random tokens, as TRL passes them to the loss."""
    mask = torch.ones(ROWS, ANSWER, dtype=torch.long)
    return {
        "prompt_ids": torch.randint(vocabulary, (ROWS, PROMPT)),
        "prompt_mask": torch.ones(ROWS, PROMPT, dtype=torch.long),
        "completion_ids": torch.randint(vocabulary, (ROWS, ANSWER)),
        "completion_mask": mask,
        "advantages": torch.randn(ROWS),
        "num_items_in_batch": mask.sum(),
    }


def blocks_above(model: Any, ids: Tensor, layer: int) -> Callable[[], None]:
    """Forward and backward of the blocks above a layer, on the states, mask and positions that they get inside the model."""
    _, decoder, layout = decoder_of(model)
    blocks = getattr(decoder, layout.blocks)[layer:]
    seen: list[Any] = []
    hook = blocks[0].register_forward_pre_hook(lambda module, args, kwargs: seen.append((args, kwargs)), with_kwargs=True)
    with torch.no_grad():
        model(ids, attention_mask=torch.ones_like(ids), use_cache=False)
    hook.remove()
    [((states, *rest), kwargs)] = seen
    gradient = torch.randn_like(states)

    def step() -> None:
        x = states.detach().requires_grad_()
        for block in blocks:
            out = block(x, *rest, **kwargs)
            x = out if isinstance(out, Tensor) else out[0]
        x.backward(gradient)

    return step


def best_seconds(steps: dict[str, Callable[[], None]], model: Any, rounds: int) -> dict[str, float]:
    """The shortest processor time of each step, in seconds. After a round that warms up, every round runs all steps in turn.

    In a round each step runs twice in a row, since training takes many steps of one kind and reuses the memory of the last one.
    """
    seconds = dict.fromkeys(steps, float("inf"))
    for number in range(rounds + 1):
        for name, step in steps.items():
            for _ in range(2):
                model.zero_grad(set_to_none=True)
                start = time.process_time()
                step()
                if number:
                    seconds[name] = min(seconds[name], time.process_time() - start)
    return seconds


def measure(name: str, rounds: int) -> dict[str, Any]:
    shape = SHAPES[name]
    n_layers = shape["num_hidden_layers"]
    with tempfile.TemporaryDirectory() as out:
        trainer = make_trainer(shape, out)
    trainer.current_gradient_accumulation_steps = 1  # set by the training loop otherwise
    model = trainer.model.train()
    completions = batch(shape["vocab_size"])
    layers = [n_layers // 4, n_layers // 2, 3 * n_layers // 4, n_layers - 1]

    def loss_and_backward(layer: int | None) -> Callable[[], None]:
        inputs = completions if layer is None else {**completions, LAYER: torch.tensor(layer)}
        return lambda: trainer._compute_loss(model, inputs).backward()

    ids = torch.cat([completions["prompt_ids"], completions["completion_ids"]], dim=1)
    steps = {"grpo": loss_and_backward(None)}
    for layer in layers:
        steps |= {str(layer): loss_and_backward(layer), f"above {layer}": blocks_above(model, ids, layer)}
    seconds = best_seconds(steps, model, rounds)
    grpo = seconds["grpo"]
    return {
        "shape": name,
        "config": shape,
        "grpo_seconds": round(grpo, 4),
        "internal": [
            {
                "layer": layer,
                "seconds": round(seconds[str(layer)], 4),
                "ratio": round(seconds[str(layer)] / grpo, 3),
                "skipped_seconds": round(seconds[f"above {layer}"], 4),
                "expected_ratio": round(1 - seconds[f"above {layer}"] / grpo, 3),
                "blocks_skipped": round(1 - layer / n_layers, 3),
            }
            for layer in layers
        ],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(args.seed)
    result = {
        "rows": ROWS,
        "prompt_tokens": PROMPT,
        "answer_tokens": ANSWER,
        "dtype": "float32",
        "threads": 1,
        "rounds": args.rounds,
        "seed": args.seed,
        "shapes": [measure(name, args.rounds) for name in SHAPES],
        "machine": platform.machine(),
        "torch": torch.__version__,
        "python": platform.python_version(),
    }
    json.dump(result, sys.stdout, indent=2)
    print()


if __name__ == "__main__":
    main()
