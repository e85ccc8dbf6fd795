"""Which policy is trained when: internal layers for a number of rollouts each, then the final policy."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from math import ceil
from typing import Any

from layerlens.errors import TrainingError

WHOLE_RUN = -1
"""As a number of rollouts: all that the run still has."""

Span = tuple[int, int, int, int | None]
"""Layer, rollouts, first and last optimizer step of a phase."""


@dataclass(frozen=True)
class Schedule:
    """Internal phases in order, each (layer, rollouts); no phase at all is plain GRPO.

    Layers count from 1. In the last phase, and there alone, the rollouts may be -1: the rest of the run.

    Raises TrainingError for a layer below 1 and for a number of rollouts that is neither positive nor -1.
    """

    phases: tuple[tuple[int, int], ...] = ()

    def __post_init__(self) -> None:
        for index, (layer, rollouts) in enumerate(self.phases):
            if layer < 1:
                raise TrainingError(f"internal layers count from 1, got {layer}")
            if rollouts == WHOLE_RUN and index < len(self.phases) - 1:
                raise TrainingError("only the last internal phase can last for the rest of the run (-1 rollouts)")
            if rollouts < 1 and rollouts != WHOLE_RUN:
                raise TrainingError(f"an internal phase lasts at least one rollout (or -1: the rest of the run), got {rollouts}")

    @classmethod
    def parse(cls, value: str | Sequence[Any]) -> Schedule:
        """Reads "4:10,8:20" (layer:rollouts), or a list of (layer, rollouts). Raises TrainingError for anything else."""
        pairs: Sequence[Any] = [part.split(":") for part in value.split(",")] if isinstance(value, str) else value
        try:
            return cls(tuple((int(layer), int(rollouts)) for layer, rollouts in pairs))
        except (TypeError, ValueError) as error:
            raise TrainingError(f"a schedule is like 4:10,8:20 (layer:rollouts), got {value!r}") from error

    def layer_at(self, rollout: int) -> int | None:
        """The internal layer that is trained on a rollout, counted from 0; None when the final policy is trained."""
        for layer, rollouts in self.phases:
            if rollouts == WHOLE_RUN or rollout < rollouts:
                return layer
            rollout -= rollouts
        return None

    @property
    def rollouts(self) -> int:
        """Rollouts of all internal phases together; -1 if the last phase lasts for the rest of the run."""
        return WHOLE_RUN if self.phases and self.phases[-1][1] == WHOLE_RUN else sum(rollouts for _, rollouts in self.phases)

    def spans(self, optimizer_steps: Callable[[int], float]) -> Iterator[Span]:
        """Yields each phase's layer, its rollouts, and its first and last optimizer step.

        `optimizer_steps(rollouts)` says how many of them the first rollouts of a run take. Optimizer steps count from 1; the last
        one is None if the phase lasts for the rest of the run. An optimizer step that takes its batches from two phases counts to
        the earlier one.
        """
        done = 0
        for layer, rollouts in self.phases:
            first = ceil(optimizer_steps(done)) + 1
            done += rollouts
            yield layer, rollouts, first, None if rollouts == WHOLE_RUN else ceil(optimizer_steps(done))
