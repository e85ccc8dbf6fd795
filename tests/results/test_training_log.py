"""What a training folder holds is read back, from folders of the old format too, and what is damaged is named."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from layerlens import plots
from layerlens.errors import RunError, SelectionError
from layerlens.results.training_log import open_training
from tests.support.training_folders import write_training

OLD = Path(__file__).parents[1] / "formats" / "training-1"
"""Written before schedule.json said which steps it counts: layer 1 for 1 rollout, layer 3 for 2 of 4, then the final policy."""


def test_a_training_folder_of_the_old_format_is_read():
    log = open_training(OLD)
    assert log.internal == [(1, 2, 1), (3, 6, 3)]
    assert log.schedule["phases"] == [
        {"layer": 1, "rollouts": 1, "first_optimizer_step": 1, "last_optimizer_step": 2},
        {"layer": 3, "rollouts": 2, "first_optimizer_step": 3, "last_optimizer_step": 6},
    ]
    assert log.monitor["step"].tolist() == [0, 2, 4, 6, 8]
    assert log.log["bupo/internal_layer"].tolist() == [1, 1, 3, 3, 3, 3, 0, 0]
    assert (log.model, log.norm, log.n_layers, log.problems, log.watched) == ("Qwen3ForCausalLM", "none", 4, 1, 1)


def test_a_training_folder_is_read(tmp_path):
    log = open_training(write_training(tmp_path / "bupo"))
    assert (log.name, log.model, log.norm, log.n_layers, log.problems, log.watched) == ("bupo", "tiny-qwen3", "none", 12, 16, 4)
    assert log.monitor["step"].tolist() == list(range(0, 41, 5))
    assert log.log["step"].tolist() == list(range(1, 41))  # neither evaluation nor summary
    assert log.internal == [(1, 10, 4)]
    assert np.isnan(log.monitor["stability/entropy_path"][1])


def test_the_newest_state_is_read_of_an_unfinished_training(tmp_path):
    out = write_training(tmp_path / "out", steps=20, checkpoint=True)
    write_training(tmp_path / "later", steps=30, checkpoint=True, monitor=False)
    (tmp_path / "later" / "checkpoint-30").rename(out / "checkpoint-30")
    assert len(open_training(out).log) == 30


def test_a_step_on_earlier_completions_is_a_step_too(tmp_path):
    """TRL logs a reward for a step that samples, and a loss for every one."""
    out = write_training(tmp_path / "out")
    file = out / "trainer_state.json"
    state = json.loads(file.read_text())
    for entry in state["log_history"]:
        if entry["step"] % 4 != 1:
            entry.pop("reward", None)
    file.write_text(json.dumps(state))
    log = open_training(out)
    assert log.log["step"].tolist() == list(range(1, 41))
    assert log.log["step"][log.log["reward"].notna()].tolist() == list(range(1, 41, 4))
    (ax,) = plots.training_dynamics(log, ["reward"])
    [line] = [line for line in ax.lines if len(line.get_xdata()) > 2]  # ten entries are too few to smooth
    assert line.get_xdata().tolist() == list(range(1, 41, 4))


def test_a_training_without_log_or_without_monitor(tmp_path):
    logged = open_training(write_training(tmp_path / "a", monitor=False))
    assert logged.monitor.empty
    assert (logged.model, logged.norm) == ("a", None)
    with pytest.raises(SelectionError, match="the training a has no monitor: train with monitor_every"):
        plots.drift(logged)
    with pytest.raises(SelectionError, match="no 'policy_entropy'; it has no monitor"):
        plots.training_dynamics(logged)
    (write_training(tmp_path / "b") / "trainer_state.json").unlink()
    watched = open_training(tmp_path / "b")
    assert (watched.log.empty, watched.internal) == (True, [(1, 10, 4)])
    with pytest.raises(SelectionError, match="no 'reward'; it has no log yet"):
        plots.training_dynamics(watched)


def test_what_is_missing_or_damaged_is_named(tmp_path):
    with pytest.raises(RunError, match="no such training folder"):
        open_training(tmp_path / "nowhere")
    with pytest.raises(RunError, match=r"holds neither monitor/summary.jsonl nor a trainer_state.json"):
        open_training(tmp_path)
    out = write_training(tmp_path / "out")
    summary = out / "monitor" / "summary.jsonl"
    whole = summary.read_text()
    summary.write_text(whole[:-20])
    with pytest.raises(RunError, match=r"summary.jsonl is damaged"):
        open_training(out)
    summary.write_text(whole)
    (out / "trainer_state.json").write_text("{}")
    with pytest.raises(RunError, match="is no trainer state"):
        open_training(out)
    for odd, told in (
        ('{"global_step": "3", "log_history": []}', "expected a whole number for global_step, got '3'"),
        ('{"global_step": 3, "log_history": 5}', "each entry of log_history is an object with its step"),
        ('{"global_step": 3, "log_history": [{"loss": 1}]}', r"\('step'\); each entry"),
        ('{"global_step": 3, "log_history": [{"loss": 1, "step": "x"}]}', "each entry of log_history"),
    ):
        (out / "trainer_state.json").write_text(odd)
        with pytest.raises(RunError, match=rf"trainer_state\.json is damaged.*{told}"):
            open_training(out)
    (out / "trainer_state.json").write_text("{")
    with pytest.raises(RunError, match="cannot be read"):
        open_training(out)
    (out / "trainer_state.json").unlink()
    for file in out.rglob("run.json"):
        file.unlink()
    with pytest.raises(RunError, match=r"no step-\* folder with a run.json"):
        open_training(out)


@pytest.mark.parametrize("logged", [1, 7])
def test_phases_are_those_of_the_schedule(logged, tmp_path):
    out = write_training(tmp_path / "out", internal=10, logged=logged)
    assert open_training(out).internal == [(1, 10, 4)]
    (out / "schedule.json").unlink()
    if logged == 1:  # the log tells as well
        assert open_training(out).internal == [(1, 10, 4)]
    else:
        with pytest.raises(RunError, match=r"schedule.json is missing, and a log of every few steps does not tell"):
            open_training(out)


def test_a_phase_for_the_whole_run_ends_with_what_is_there(tmp_path):
    out = write_training(tmp_path / "out", steps=20)
    schedule = json.loads((out / "schedule.json").read_text())
    schedule["phases"][0] |= {"rollouts": None, "last_optimizer_step": None}
    (out / "schedule.json").write_text(json.dumps(schedule))
    assert open_training(out).internal == [(1, 20, 4)]
    for phases, told in (
        ([{"layer": 3}], "it lacks 'first_optimizer_step'"),
        (3, "expected a list of phases, got 3"),
    ):
        (out / "schedule.json").write_text(json.dumps({"phases": phases}))
        with pytest.raises(RunError, match=rf"schedule\.json is damaged: {told}"):
            open_training(out)
