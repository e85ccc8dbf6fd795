"""Training batches: a pure function of seed and step, so that training can stop and resume anywhere."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from layerlens.prompts.arithmetic.dataset import Problem, problems
from layerlens.prompts.arithmetic.kinds import DIFFICULTIES

POOL = 8
"""Steps whose sequences are sorted by length together, so that little of a batch is padding."""

IGNORE = -100
"""Label of a position that is not trained on: prompt and padding."""


@dataclass(frozen=True)
class Batch:
    """Token ids and labels, `[sequences, positions]`, padded on the right; the label at t is the token at t."""

    ids: Tensor
    labels: Tensor
    tokens: int
    """Tokens that are not padding."""

    def to(self, device: torch.device) -> Batch:
        """The batch on another device."""
        return Batch(self.ids.to(device), self.labels.to(device), self.tokens)


def encode(problem: Problem, tokenizer: PreTrainedTokenizerBase) -> tuple[list[int], list[int]]:
    """The prompt's ids (with the generation prompt) and the solution's ids (with the end token)."""
    text = tokenizer.apply_chat_template(list(problem.prompt), add_generation_prompt=True, tokenize=False)
    prompt = tokenizer(text, add_special_tokens=False)["input_ids"]
    solution = tokenizer(problem.solution, add_special_tokens=False)["input_ids"]
    return prompt, [*solution, tokenizer.eos_token_id]


def pool(tokenizer: PreTrainedTokenizerBase, seed: int, index: int, size: int, difficulties: Sequence[int] = DIFFICULTIES) -> list[Batch]:
    """Batches of the steps `index * POOL` up to `(index + 1) * POOL - 1`, `size` training problems each.

    The batches are cut from one list sorted by length, and come in an order drawn from the seed.
    """
    drawn = [encode(p, tokenizer) for p in problems("train", POOL * size, seed * 1_000_003 + index, difficulties=difficulties)]
    drawn.sort(key=lambda pair: len(pair[0]) + len(pair[1]))
    batches = [_collate(drawn[i : i + size], tokenizer.pad_token_id) for i in range(0, len(drawn), size)]
    order = torch.randperm(POOL, generator=torch.Generator().manual_seed(seed * 1_000_003 + index))
    return [batches[i] for i in order.tolist()]


def _collate(pairs: list[tuple[list[int], list[int]]], pad: int) -> Batch:
    lengths = [len(prompt) + len(solution) for prompt, solution in pairs]
    ids = torch.full((len(pairs), max(lengths)), pad)
    labels = torch.full_like(ids, IGNORE)
    for row, (prompt, solution) in enumerate(pairs):
        end = len(prompt) + len(solution)
        ids[row, :end] = torch.tensor(prompt + solution)
        labels[row, len(prompt) : end] = torch.tensor(solution)
    return Batch(ids, labels, sum(lengths))
