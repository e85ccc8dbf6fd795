"""Training batches, which depend on seed and step alone, so that training can stop and resume at any step."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from layerlens.prompts.arithmetic.dataset import Problem, problems
from layerlens.prompts.arithmetic.kinds import DIFFICULTIES

BUCKET_STEPS = 8
"""Steps whose sequences are sorted by length together, so that little of a batch is padding."""

IGNORE_INDEX = -100
"""Label of a position that is not trained on: prompt and padding."""


@dataclass(frozen=True)
class Batch:
    """Token ids and labels, both of shape (sequences, positions), padded on the right; the label at position t is the token at t."""

    ids: Tensor
    labels: Tensor
    tokens: int
    """Tokens that are not padding."""

    def to(self, device: torch.device) -> Batch:
        """The batch on another device."""
        return Batch(self.ids.to(device), self.labels.to(device), self.tokens)


def encode_problem(problem: Problem, tokenizer: PreTrainedTokenizerBase) -> tuple[list[int], list[int]]:
    """The token ids of the prompt, with the marks that open the assistant's turn, and those of the solution, with the end token."""
    text = tokenizer.apply_chat_template(list(problem.prompt), add_generation_prompt=True, tokenize=False)
    prompt = tokenizer(text, add_special_tokens=False)["input_ids"]
    solution = tokenizer(problem.solution, add_special_tokens=False)["input_ids"]
    return prompt, [*solution, tokenizer.eos_token_id]


def bucket_batches(
    tokenizer: PreTrainedTokenizerBase, seed: int, bucket: int, batch_size: int, difficulties: Sequence[int] = DIFFICULTIES
) -> list[Batch]:
    """The batches of steps `bucket * BUCKET_STEPS` to `(bucket + 1) * BUCKET_STEPS - 1`, with `batch_size` training problems each.

    The batches are cut from one list sorted by length, and come in an order drawn from the seed.
    """
    drawn = problems("train", BUCKET_STEPS * batch_size, seed * 1_000_003 + bucket, difficulties=difficulties)
    pairs = [encode_problem(problem, tokenizer) for problem in drawn]
    pairs.sort(key=lambda pair: len(pair[0]) + len(pair[1]))
    batches = [_collate(pairs[i : i + batch_size], tokenizer.pad_token_id) for i in range(0, len(pairs), batch_size)]
    order = torch.randperm(BUCKET_STEPS, generator=torch.Generator().manual_seed(seed * 1_000_003 + bucket))
    return [batches[i] for i in order.tolist()]


def _collate(pairs: list[tuple[list[int], list[int]]], pad: int) -> Batch:
    """One batch of (prompt ids, solution ids), with labels on the solutions alone."""
    lengths = [len(prompt) + len(solution) for prompt, solution in pairs]
    ids = torch.full((len(pairs), max(lengths)), pad)
    labels = torch.full_like(ids, IGNORE_INDEX)
    for row, (prompt, solution) in enumerate(pairs):
        end = len(prompt) + len(solution)
        ids[row, :end] = torch.tensor(prompt + solution)
        labels[row, len(prompt) : end] = torch.tensor(solution)
    return Batch(ids, labels, sum(lengths))
