"""How a run shows where it is: one short line for each entry of the log, or a bar."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from layerlens.train.training_progress import TrainingProgress, describe_entry, nothing_to_learn, training_progress
from tests.support.training import make_trainer

pytestmark = pytest.mark.filterwarnings("default")  # TRL's and accelerate's own

LINE = r"step {}/4  {:8}  reward [\d.]+  loss -?[\d.e-]+  entropy [\d.]+  [\d.e-]+ s/step  \d:\d\d left"


def test_without_a_terminal_each_entry_of_the_log_is_one_short_line_and_all_of_it_is_logged(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    trainer = make_trainer(
        tmp_path, internal_layer=2, internal_rollouts=2, max_steps=4, monitor_every=2, monitor_problems=2, monitor_repeats=1
    )
    with training_progress(trainer, terminal=False):
        trainer.train()
    trainer.save_state()
    told = capsys.readouterr()
    assert "{" not in told.out, "no dictionaries"
    lines = [line for line in told.err.splitlines() if line.startswith("step ")]
    assert len(lines) == 4
    for number, line in enumerate(lines, 1):
        assert re.fullmatch(LINE.format(number, "layer 2" if number <= 2 else "final"), line), line
        assert len(line) < 110
    entries = json.loads((tmp_path / "trainer_state.json").read_text())["log_history"]
    assert {"reward", "internal/entropy", "internal/clip_ratio/low_mean", "step_time"} <= next(e for e in entries if "reward" in e).keys()
    assert any("monitor/perplexity" in entry for entry in entries)


def test_a_terminal_has_a_bar_that_ends_with_the_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    trainer = make_trainer(tmp_path, internal_layer=2, internal_rollouts=1, max_steps=3)
    seen: list[tuple[float, str]] = []
    with training_progress(trainer, terminal=True):
        [shown] = [callback for callback in trainer.callback_handler.callbacks if isinstance(callback, TrainingProgress)]
        log = shown.on_log

        def watch(*args: object, **kwargs: object) -> None:
            log(*args, **kwargs)
            if shown.bar is not None:
                [task] = shown.bar.tasks
                seen.append((task.completed, task.fields["numbers"]))

        shown.on_log = watch  # type: ignore[method-assign]
        trainer.train()
        assert shown.bar is None
    assert [done for done, _ in seen[:3]] == [1, 2, 3]
    assert [numbers.split("  ")[0].strip() for _, numbers in seen[:3]] == ["layer 2", "final", "final"]
    assert "step 1/3" not in capsys.readouterr().err


def test_a_bar_is_taken_away_if_training_stops(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path)
    trainer._calculate_rewards = None
    with pytest.raises(TypeError), training_progress(trainer, terminal=True):
        trainer.train()
    [shown] = [callback for callback in trainer.callback_handler.callbacks if isinstance(callback, TrainingProgress)]
    assert shown.bar is None


def test_an_entry_over_two_phases_says_so_with_both_entropies() -> None:
    logs = {"bupo/internal_layer": 1.2, "loss": 0.25, "reward": 0.5, "internal/entropy": 3.0, "entropy": 1.25, "step_time": 61.31}
    assert describe_entry(logs) == "mixed     reward 0.5  loss 0.25  entropy 3 and 1.25  61.3 s/step"
    assert describe_entry({"loss": 0.1, "reward": None, "bupo/internal_layer": 12.0}) == "layer 12  loss 0.1"


def test_a_run_that_learns_nothing_says_so_once_and_why(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    trainer = make_trainer(tmp_path, max_steps=2)
    trainer.reward_funcs[0] = lambda completions, **columns: [0.0] * len(completions)
    with training_progress(trainer, terminal=False):
        trainer.train()
    told = [line for line in capsys.readouterr().err.splitlines() if "nothing to learn" in line]
    assert told == [
        "step 1: nothing to learn here: to each problem all answers got the same reward, so every advantage is 0; 100% of the answers were "
        "cut at max_completion_length 6: allow more"
    ]
    assert nothing_to_learn({"frac_reward_zero_std": 0.75}, 6) == ""
    assert nothing_to_learn({"frac_reward_zero_std": 1.0, "completions/clipped_ratio": 0.1}, 6).endswith("every advantage is 0")
