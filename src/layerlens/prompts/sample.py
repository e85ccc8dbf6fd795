"""A text to analyse, as token ids."""

from __future__ import annotations

import operator
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Bool

from layerlens.errors import PromptError


@dataclass(frozen=True)
class Sample:
    """A text to analyse.

    `token_ids[response_start:]` is the response; `response_start == len(token_ids)` is a prompt that still waits for one,
    and 0 (the default) makes the whole text count as response.
    """

    token_ids: Sequence[int]
    response_start: int = 0
    id: str | None = None
    ground_truth: str | None = None

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

    @property
    def has_response(self) -> bool:
        """Whether there is a response, rather than a prompt that still waits for one."""
        return self.response_start < len(self.token_ids)

    @property
    def name(self) -> str:
        """What errors and figures call the sample: its id."""
        return "(unnamed)" if self.id is None else self.id

    @property
    def in_response(self) -> Bool[np.ndarray, " tokens"]:
        """For each position, whether the token that its policy predicts, the next one, is there and belongs to the response."""
        predicted = np.arange(1, len(self.token_ids) + 1)
        in_response: Bool[np.ndarray, " tokens"] = (predicted >= self.response_start) & (predicted < len(self.token_ids))
        return in_response


def named(samples: Iterable[Sample]) -> list[Sample]:
    """The samples, each with an id: its own, else its number from 0."""
    return [sample if sample.id is not None else replace(sample, id=str(number)) for number, sample in enumerate(samples)]
