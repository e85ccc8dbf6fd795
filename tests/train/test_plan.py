"""The plan that is shown at start, and what `schedule.json` keeps of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from layerlens.errors import TrainingError
from layerlens.results.training_log import open_training
from layerlens.train.plan import require_same_schedule, schedule_contents
from tests.support.training import make_trainer

pytestmark = pytest.mark.filterwarnings("default")  # TRL's and accelerate's own


def test_a_resumed_run_keeps_its_schedule_file_and_refuses_another_schedule(tmp_path: Path) -> None:
    settings = {"internal_schedule": "1:1,3:2", "num_iterations": 2, "save_strategy": "steps", "save_steps": 3, "logging_steps": 3}
    make_trainer(tmp_path, max_steps=3, **settings).train()
    written = (tmp_path / "schedule.json").read_bytes()
    resumed = make_trainer(tmp_path, max_steps=9, **settings)
    resumed.train(resume_from_checkpoint=True)
    resumed.save_state()
    assert (tmp_path / "schedule.json").read_bytes() == written
    assert open_training(tmp_path).internal == [(1, 2, 1), (3, 6, 3)]
    assert open_training(tmp_path).log["step"].tolist() == [3, 6, 9]
    with pytest.raises(TrainingError, match="had another schedule"):
        make_trainer(tmp_path, max_steps=9, **settings | {"internal_schedule": "1:2,3:2"}).train(resume_from_checkpoint=True)


def test_a_schedule_file_of_the_old_format_is_compared_in_the_keys_of_now(tmp_path: Path) -> None:
    old = Path(__file__).parents[1] / "formats" / "training-1" / "schedule.json"
    trainer = make_trainer(tmp_path, internal_schedule="1:1,3:2", num_iterations=2)
    contents = schedule_contents(trainer.args, trainer._spans(), trainer.layer_factors, None)
    require_same_schedule(old, contents)
    (tmp_path / "schedule.json").write_text(old.read_text().replace('"layer": 3', '"layer": 2'))
    with pytest.raises(TrainingError, match="had another schedule"):
        require_same_schedule(tmp_path / "schedule.json", contents)


@pytest.mark.parametrize(
    ("settings", "row"),
    [
        ({"internal_rollouts": 1}, ("internal policy of layer 2", "1 rollout (1 optimizer step), norm none")),
        (
            {"internal_rollouts": 3, "num_iterations": 2, "max_steps": 8},
            ("internal policy of layer 2", "3 rollouts (6 optimizer steps), norm none"),
        ),
        ({"internal_rollouts": -1, "internal_norm": "final"}, ("internal policy of layer 2", "the rest of the run, norm final")),
        ({"internal_rollouts": 0}, ("final policy (GRPO)", "throughout")),
    ],
)
def test_the_plan_counts_rollouts_and_optimizer_steps(settings: dict[str, Any], row: tuple[str, str], tmp_path: Path) -> None:
    plan = make_trainer(tmp_path, internal_layer=2, **settings).plan()
    assert plan[0] == row
    assert (plan[-1] == ("final policy (GRPO)", "then")) == (settings["internal_rollouts"] > 0)


def test_the_plan_says_what_the_run_does_not_reach(tmp_path: Path) -> None:
    plan = make_trainer(tmp_path, internal_schedule="1:2,3:2", max_steps=2).plan()
    assert plan == [
        ("internal policy of layer 1", "2 rollouts (2 optimizer steps), norm none"),
        ("internal policy of layer 3", "not reached in 2 optimizer steps, norm none"),
        ("final policy (GRPO)", "not reached in 2 optimizer steps"),
    ]
