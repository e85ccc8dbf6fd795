"""Which layer is trained on which rollout, also in a run that is resumed."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from layerlens.train.schedule import Schedule
from tests.support.training import make_trainer, trained_layers

pytestmark = pytest.mark.filterwarnings("default")  # TRL's and accelerate's own


@given(st.lists(st.tuples(st.integers(1, 9), st.integers(1, 5)), max_size=3), st.integers(1, 4))
def test_spans_in_optimizer_steps_agree_with_layer_at_rollout(phases: list[tuple[int, int]], steps_per_rollout: int) -> None:
    schedule = Schedule(tuple(phases))
    layers = [schedule.layer_at(step // steps_per_rollout) for step in range(steps_per_rollout * schedule.rollouts)]
    spans = list(schedule.spans(lambda rollouts: rollouts * steps_per_rollout))
    assert [layer for layer, _, first, last in spans for _ in range(first, last + 1)] == layers
    assert [first for _, _, first, _ in spans[1:]] == [last + 1 for _, _, _, last in spans[:-1]]


def test_an_optimizer_step_that_two_phases_share_counts_to_the_earlier_phase() -> None:
    assert list(Schedule(((2, 3), (5, -1))).spans(lambda rollouts: rollouts / 2)) == [(2, 3, 1, 2), (5, -1, 3, None)]


def test_training_switches_layers_at_the_rollouts_of_the_schedule(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path, internal_schedule="1:1,3:2", max_steps=10, num_iterations=2)
    assert trained_layers(trainer) == [1, 1, 3, 3, 3, 3, 0, 0, 0, 0]
    assert trainer.args.optimizer_steps(3) == 6
    assert ("internal policy of layer 3", "2 rollouts (4 optimizer steps), norm none") in trainer.plan()
