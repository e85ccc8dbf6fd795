"""Which policy is trained when: internal layers for so many rollout steps each, then the whole model."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import ceil
from typing import Any

from layerlens.errors import TrainingError

WHOLE_RUN = -1


@dataclass(frozen=True)
class Schedule:
    """Internal phases in order, each (layer, rollout steps); steps of -1, in the last only, mean the rest of the run."""

    phases: tuple[tuple[int, int], ...] = ()

    def __post_init__(self) -> None:
        for place, (layer, steps) in enumerate(self.phases):
            if layer < 1:
                raise TrainingError(f"internal layers count from 1, got {layer}")
            if steps == WHOLE_RUN and place < len(self.phases) - 1:
                raise TrainingError("only the last internal phase can last for the whole run (-1 steps)")
            if steps < 1 and steps != WHOLE_RUN:
                raise TrainingError(f"an internal phase lasts at least one rollout step (or -1: the rest of the run), got {steps}")

    @classmethod
    def parse(cls, value: str | Sequence[Any]) -> Schedule:
        """From "4:10,8:20", or a list of (layer, steps)."""
        pairs: Sequence[Any] = [part.split(":") for part in value.split(",")] if isinstance(value, str) else value
        try:
            return cls(tuple((int(layer), int(steps)) for layer, steps in pairs))
        except (TypeError, ValueError) as error:
            raise TrainingError(f"a schedule is like 4:10,8:20 (layer:rollout steps), got {value!r}") from error

    def layer_at(self, rollout: int) -> int | None:
        """The internal layer trained in a rollout step (from 0); None once the whole policy is trained."""
        for layer, steps in self.phases:
            if steps == WHOLE_RUN or rollout < steps:
                return layer
            rollout -= steps
        return None

    @property
    def rollouts(self) -> int:
        """Rollout steps of all internal phases together; -1 for the whole run."""
        return WHOLE_RUN if self.phases and self.phases[-1][1] == WHOLE_RUN else sum(steps for _, steps in self.phases)

    def spans(self, updates: float) -> Iterator[tuple[int, int, int, int | None]]:
        """Each phase's layer, rollout steps, and first and last optimizer step (from 1; None: the run's last).

        `updates` is how many optimizer steps make a rollout step. One that two phases share counts to the earlier.
        """
        done = 0.0
        for layer, steps in self.phases:
            first = ceil(done) + 1
            done += steps * updates
            yield layer, steps, first, None if steps == WHOLE_RUN else ceil(done)
