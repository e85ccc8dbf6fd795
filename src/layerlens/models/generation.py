"""Sampling responses to prompts with the model's final policy, in batches, with one random number generator per response."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformers import GenerationConfig, LogitsProcessor

from layerlens.models.lens import LensModel
from layerlens.models.sampling import Generation, RowwiseGumbelSampler, response_seed, until_end
from layerlens.progress import OnTokens
from layerlens.prompts.sample import Sample


def generate_responses(
    model: LensModel,
    samples: Sequence[Sample],
    generation: Generation,
    numbers: Sequence[int],
    on_tokens: OnTokens | None = None,
) -> list[Sample]:
    """Draws a response for every sample that has none, in one batch; a sample that has a response is returned unchanged.

    A response keeps its end-of-sequence token.

    Args:
        numbers: a number per sample, from which (with `generation.seed`) the response's generator is seeded; a prompt that
            comes twice under two numbers gets two responses.
        on_tokens: is told before every step which share of `max_new_tokens` has passed, and how many tokens the step draws.

    Raises:
        PromptError: a prompt and its response do not fit the model's context, or a token lies outside the vocabulary.
    """
    waiting = [sample for sample in samples if not sample.has_response]
    if not waiting:
        return list(samples)
    seeds = [response_seed(generation.seed, number) for number, sample in zip(numbers, samples, strict=True) if not sample.has_response]
    require_fits_context(model, samples, generation.max_new_tokens)
    network: Any = model.parts.model
    ends = list(model.end_tokens)
    pad = ends[0] if ends else 0
    width = max(len(sample.token_ids) for sample in waiting)
    ids = torch.full((len(waiting), width), pad)
    mask = torch.zeros_like(ids)
    for row, sample in enumerate(waiting):
        ids[row, width - len(sample.token_ids) :] = torch.tensor(sample.token_ids)
        mask[row, width - len(sample.token_ids) :] = 1
    processors = generation.warpers()
    if not generation.greedy:
        processors.append(RowwiseGumbelSampler(seeds))
    if on_tokens is not None:
        processors.append(_TokenCounter(width, generation.max_new_tokens, ends, on_tokens))
    config = GenerationConfig(
        do_sample=False, max_new_tokens=generation.max_new_tokens, eos_token_id=ends or None, pad_token_id=pad, repetition_penalty=1.0
    )
    with model.evaluation_mode(), _shipped_settings_off(network), torch.inference_mode():
        out = network.generate(
            input_ids=ids.to(model.device), attention_mask=mask.to(model.device), generation_config=config, logits_processor=processors
        )
    responses = iter(out[:, width:].tolist())
    return [sample if sample.has_response else _with_response(sample, until_end(next(responses), ends)) for sample in samples]


def require_fits_context(model: LensModel, samples: Sequence[Sample], new_tokens: int = 0) -> None:
    """Checks that each sample, with `new_tokens` more if it has no response yet, fits the model's context and vocabulary.

    Raises PromptError for the first sample that does not.
    """
    for index, sample in enumerate(samples):
        model.require_fits_context(sample.token_ids, 0 if sample.has_response else new_tokens, f"prompt {sample.id or index}")


class _TokenCounter(LogitsProcessor):  # type: ignore[misc]
    """Changes no logits; tells before every step which share of the steps has passed, and how many responses get a token now."""

    def __init__(self, width: int, max_new_tokens: int, end_tokens: Sequence[int], on_tokens: OnTokens):
        self.width, self.max_new_tokens, self.end_tokens, self.on_tokens = width, max_new_tokens, end_tokens, on_tokens
        self.ended: Tensor | None = None

    def __call__(self, input_ids: Int[Tensor, "batch seq"], scores: Float[Tensor, "batch vocabulary"]) -> Float[Tensor, "batch vocabulary"]:
        step, last = input_ids.shape[1] - self.width, input_ids[:, -1]
        if self.ended is None:
            self.ended = torch.zeros_like(last, dtype=torch.bool)
        else:
            self.ended |= torch.isin(last, torch.tensor(self.end_tokens, dtype=last.dtype, device=last.device))
        self.on_tokens(step / self.max_new_tokens, len(last) - int(self.ended.sum()))
        return scores


@contextmanager
def _shipped_settings_off(network: Any) -> Iterator[None]:
    """Inside, generation settings that come with the model (penalties, beams, banned tokens) fill in no setting of ours."""
    shipped = network.generation_config
    network.generation_config = GenerationConfig()
    try:
        yield
    finally:
        network.generation_config = shipped


def _with_response(sample: Sample, response: Sequence[int]) -> Sample:
    return replace(sample, token_ids=(*sample.token_ids, *response))
