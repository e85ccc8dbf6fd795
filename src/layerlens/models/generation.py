"""Sampling responses to prompts with the model's own policy, batched, one random stream per sample."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformers import GenerationConfig, LogitsProcessor, LogitsProcessorList, TemperatureLogitsWarper, TopPLogitsWarper

from layerlens.errors import PromptError
from layerlens.models.lens import LensModel
from layerlens.prompts.sample import Sample


@dataclass(frozen=True)
class Generation:
    """How responses are sampled.

    Attributes:
        max_new_tokens: the longest response, in tokens.
        temperature: of the sampling; 0 takes the most likely token.
        top_p: share of the probability mass that is sampled from (nucleus).
        seed: of the random streams. Each sample has its own, so batching and order change no response.
    """

    max_new_tokens: int = 1024
    temperature: float = 1.0
    top_p: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        if self.max_new_tokens < 1:
            raise PromptError(f"max_new_tokens must be at least 1, got {self.max_new_tokens}")
        if not self.temperature >= 0:
            raise PromptError(f"temperature must be 0 or more, got {self.temperature}")
        if not 0 < self.top_p <= 1:
            raise PromptError(f"top_p must be in (0, 1], got {self.top_p}")


class _GumbelNoise(LogitsProcessor):  # type: ignore[misc]
    """Turns greedy decoding into sampling: argmax(log p + Gumbel noise) is a draw from p, with a stream per row."""

    def __init__(self, seeds: Sequence[int], device: torch.device):
        self.generators = [torch.Generator(device).manual_seed(seed) for seed in seeds]

    def __call__(self, input_ids: Int[Tensor, "batch seq"], scores: Float[Tensor, "batch vocabulary"]) -> Float[Tensor, "batch vocabulary"]:
        noise = torch.empty_like(scores, dtype=torch.float32)
        for row, generator in zip(noise, self.generators, strict=True):
            row.exponential_(generator=generator)
        return scores.float().log_softmax(-1) - noise.log()


def generate_responses(model: LensModel, samples: Sequence[Sample], generation: Generation, numbers: Sequence[int]) -> list[Sample]:
    """Samples with a response each, drawn in one batch; a sample that has one is left as it is.

    The response keeps its end-of-sequence token. `numbers` tell the samples' random streams apart, so that a prompt that
    comes twice gets two responses.

    Raises PromptError where a prompt leaves no room in the model's context.
    """
    waiting = [sample for sample in samples if not sample.has_response]
    if not waiting:
        return list(samples)
    streams = [stream_seed(generation.seed, number) for number, sample in zip(numbers, samples, strict=True) if not sample.has_response]
    require_room(model, samples, generation.max_new_tokens)
    network: Any = model.parts.model
    ends = list(model.end_tokens)
    pad = ends[0] if ends else 0
    width = max(len(sample.token_ids) for sample in waiting)
    ids = torch.full((len(waiting), width), pad)
    mask = torch.zeros_like(ids)
    for row, sample in enumerate(waiting):
        ids[row, width - len(sample.token_ids) :] = torch.tensor(sample.token_ids)
        mask[row, width - len(sample.token_ids) :] = 1
    processors = LogitsProcessorList()
    if generation.temperature not in (0.0, 1.0):
        processors.append(TemperatureLogitsWarper(generation.temperature))
    if generation.top_p < 1.0:
        processors.append(TopPLogitsWarper(generation.top_p))
    if generation.temperature > 0:
        processors.append(_GumbelNoise(streams, model.parts.unembedding.device))
    config = GenerationConfig(
        do_sample=False, max_new_tokens=generation.max_new_tokens, eos_token_id=ends or None, pad_token_id=pad, repetition_penalty=1.0
    )
    with model.evaluating(), _plain_defaults(network), torch.inference_mode():
        out = network.generate(
            input_ids=ids.to(model.device), attention_mask=mask.to(model.device), generation_config=config, logits_processor=processors
        )
    answers = iter(out[:, width:].tolist())
    return [sample if sample.has_response else _answered(sample, next(answers), ends) for sample in samples]


@contextmanager
def _plain_defaults(network: Any) -> Iterator[None]:
    """Inside, the generation settings that come with a model (penalties, beams, banned tokens) do not fill in what we leave open."""
    shipped = network.generation_config
    network.generation_config = GenerationConfig()
    try:
        yield
    finally:
        network.generation_config = shipped


def require_room(model: LensModel, samples: Sequence[Sample], new_tokens: int = 0) -> None:
    """Raises PromptError for the first sample that, with the response it still waits for, outgrows the model's context or vocabulary."""
    for index, sample in enumerate(samples):
        model.require_room(sample.token_ids, 0 if sample.has_response else new_tokens, f"prompt {sample.id or index}")


def _answered(sample: Sample, tokens: list[int], ends: list[int]) -> Sample:
    stop = next((place + 1 for place, token in enumerate(tokens) if token in ends), len(tokens))
    return replace(sample, token_ids=(*sample.token_ids, *tokens[:stop]))


def stream_seed(seed: int, number: int) -> int:
    """The seed of one response's own random stream."""
    return int.from_bytes(hashlib.sha256(f"{seed} {number}".encode()).digest()[:7], "little")
