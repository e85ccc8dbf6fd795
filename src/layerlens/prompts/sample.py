"""A text to analyse, as token ids."""

from __future__ import annotations

import hashlib
import operator
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Bool

from layerlens.errors import PromptError


@dataclass(frozen=True)
class Sample:
    """A text to analyse: a prompt and a response, as token ids.

    Attributes:
        token_ids: the whole text, prompt and response.
        response_start: the index of the first response token. `len(token_ids)` means a prompt without a response yet; 0, the default,
            counts the whole text as response.
        id: what figures, tables and errors call the sample; by default its number in the list it is analysed with.
        ground_truth: the right answer, for samples that are checked.
        thinking: the first and the last (exclusive) index of each stretch of the response in which the model thinks. By default
            `analyze` looks for the model's thinking marks.
        correct: whether the response is right, if the source says so.

    Raises PromptError for an empty text, a token id that is not a whole number, a `response_start` outside the text, or thinking
    outside the response.
    """

    token_ids: Sequence[int]
    response_start: int = 0
    id: str | None = None
    ground_truth: str | None = None
    thinking: tuple[tuple[int, int], ...] = ()
    correct: bool | None = None

    def __post_init__(self) -> None:
        try:
            object.__setattr__(self, "token_ids", tuple(operator.index(token) for token in self.token_ids))
        except TypeError as error:
            raise PromptError(f"sample {self.id or ''}: token_ids must be whole numbers ({error})") from error
        if self.id is not None:
            object.__setattr__(self, "id", str(self.id))
        if not self.token_ids:
            raise PromptError(f"sample {self.id or ''}: no tokens; a sample needs at least one")
        if not 0 <= self.response_start <= len(self.token_ids):
            raise PromptError(f"sample {self.id or ''}: response_start must be in 0..{len(self.token_ids)}, got {self.response_start}")
        if not all(self.response_start <= start < stop <= len(self.token_ids) for start, stop in self.thinking):
            response = f"{self.response_start}..{len(self.token_ids)}"
            raise PromptError(f"sample {self.id or ''}: thinking must lie in the response, {response}, got {self.thinking}")

    @property
    def has_response(self) -> bool:
        """Whether there is at least one response token."""
        return self.response_start < len(self.token_ids)

    @property
    def name(self) -> str:
        """The id, or "(unnamed)" for a sample without one."""
        return "(unnamed)" if self.id is None else self.id

    @property
    def in_response(self) -> Bool[np.ndarray, " tokens"]:
        """For each position, whether the token that its policy predicts, the next one, exists and belongs to the response."""
        predicted = np.arange(1, len(self.token_ids) + 1)
        in_response: Bool[np.ndarray, " tokens"] = (predicted >= self.response_start) & (predicted < len(self.token_ids))
        return in_response

    @property
    def segment(self) -> np.ndarray:
        """For each position the `Segment` of the token that its policy predicts, the next one; "" at the last position."""
        of_token = np.full(len(self.token_ids) + 1, "prompt", dtype=object)
        of_token[self.response_start :] = "answer"
        for start, stop in self.thinking:
            of_token[start:stop] = "thinking"
        of_token[-1] = ""
        return of_token[1:]


def named(samples: Iterable[Sample]) -> list[Sample]:
    """The samples, each with an id: its own if it has one, otherwise its number from 0."""
    return [sample if sample.id is not None else replace(sample, id=str(number)) for number, sample in enumerate(samples)]


def digest_of(samples: Iterable[Sample]) -> str:
    """A digest of the samples' token ids, beginnings of responses, ids, ground truths, thinking and correctness, 16 hexadecimal digits."""
    digest = hashlib.sha256()
    for sample in samples:
        thinking = f" {sample.thinking}" if sample.thinking else ""
        correct = "" if sample.correct is None else f" correct: {sample.correct}"
        digest.update(f"{sample.token_ids} {sample.response_start} {sample.id} {sample.ground_truth}{thinking}{correct}\n".encode())
    return digest.hexdigest()[:16]
