"""How next tokens are sampled: the settings, and what temperature and top-p do to the logits."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformers import LogitsProcessor, LogitsProcessorList, TemperatureLogitsWarper, TopPLogitsWarper

from layerlens.errors import ModelLoadError, PromptError


@dataclass(frozen=True)
class Generation:
    """How responses are sampled.

    Attributes:
        max_new_tokens: the longest response, in tokens.
        temperature: divides the logits before sampling; 0 takes the most likely token.
        top_p: share of the probability mass that is sampled from (nucleus sampling), in (0, 1].
        seed: of the random number generators. Each response has its own generator, so batching and order change no response (but where the
            model itself looks at a whole batch: LLM.int8, and longrope beyond its first length).

    Raises PromptError if a setting is out of its range.
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

    @property
    def greedy(self) -> bool:
        """Whether the most likely token is taken, without any randomness."""
        return self.temperature == 0.0

    def warpers(self) -> LogitsProcessorList:
        """The processors that apply temperature and top-p to next-token logits, in this order."""
        warpers = LogitsProcessorList()
        if self.temperature not in (0.0, 1.0):
            warpers.append(TemperatureLogitsWarper(self.temperature))
        if self.top_p < 1.0:
            warpers.append(TopPLogitsWarper(self.top_p))
        return warpers


class RowwiseGumbelSampler(LogitsProcessor):  # type: ignore[misc]
    """Turns greedy decoding into sampling: argmax(log p + Gumbel noise) is a draw from p; each row has its own generator.

    Source: the Gumbel-max trick (Gumbel 1954; Maddison et al. 2014, arXiv 1411.0030).
    """

    def __init__(self, seeds: Sequence[int]):
        self.seeds = tuple(seeds)
        self.generators: list[torch.Generator] = []

    def __call__(self, input_ids: Int[Tensor, "batch seq"], scores: Float[Tensor, "batch vocabulary"]) -> Float[Tensor, "batch vocabulary"]:
        if not self.generators:  # only the first scores show on which device a model spread over several returns them
            self.generators = [torch.Generator(scores.device).manual_seed(seed) for seed in self.seeds]
        noise = torch.empty_like(scores, dtype=torch.float32)
        for row, generator in zip(noise, self.generators, strict=True):
            row.exponential_(generator=generator)
        return scores.float().log_softmax(-1) - noise.log()


def response_seed(seed: int, number: int) -> int:
    """The seed of the generator that draws response `number` of a run with seed `seed`."""
    return int.from_bytes(hashlib.sha256(f"{seed} {number}".encode()).digest()[:7], "little")


def until_end(tokens: Sequence[int], end_tokens: Collection[int]) -> list[int]:
    """The tokens up to and including the first end token; all of them if there is none."""
    stop = next((place + 1 for place, token in enumerate(tokens) if token in end_tokens), len(tokens))
    return list(tokens[:stop])


def checked_end_tokens(named: object, vocabulary: int, model: str) -> tuple[int, ...]:
    """The end tokens that a model's settings name: an id, several, or None.

    Raises ModelLoadError if one of them is not an id of the vocabulary: responses would never end.
    """
    ends = () if named is None else tuple(named) if isinstance(named, (list, tuple)) else (named,)
    for end in ends:
        if type(end) is not int or not 0 <= end < vocabulary:
            raise ModelLoadError(
                f"{model}: eos_token_id must be ids from 0 to {vocabulary - 1}, got {end!r}; correct its generation_config.json"
            )
    return ends
