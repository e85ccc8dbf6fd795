"""Work that other processes wait for: its outcome is everybody's, and what they would not wait for is refused beforehand."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from layerlens.analysis import forecast
from layerlens.errors import TrainingError
from layerlens.train import layer_choice, waiting
from layerlens.train.waiting import longest_wait, require_in_time
from tests.support.processes import launch
from tests.support.training import make_trainer
from tests.support.waiting_worker import wait

pytestmark = pytest.mark.filterwarnings("default")  # TRL's and accelerate's own

CPU = torch.device("cpu")


def test_a_process_alone_waits_for_nobody_and_is_told_of_long_work_alone(capsys: pytest.CaptureFixture[str]) -> None:
    assert longest_wait(CPU) is None
    require_in_time("internal_layer auto", "32 answers", 29.0, CPU, "lower it")
    assert capsys.readouterr().err == ""
    require_in_time("internal_layer auto", "32 answers", 1e5, CPU, "lower it")
    assert capsys.readouterr().err == "internal_layer auto: 32 answers, at most 27 h 47 min\n"


def test_work_is_refused_that_takes_longer_than_the_others_wait(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(waiting, "longest_wait", lambda device: 1800.0)
    require_in_time("a snapshot of the monitor", "80 answers", 1800.0, CPU, "lower it")
    assert (
        capsys.readouterr().err
        == "a snapshot of the monitor: 80 answers, at most 30 min, for which the other processes wait (up to 30 min)\n"
    )
    with pytest.raises(TrainingError) as refusal:
        require_in_time("a snapshot of the monitor", "80 answers", 7200.0, CPU, "lower it")
    assert str(refusal.value) == (
        "a snapshot of the monitor: 80 answers, may take 2 h, and the other processes wait 30 min: "
        "set ddp_timeout above 7200 (seconds), lower it"
    )


def test_the_time_of_auto_and_of_the_monitor_is_said_before_they_begin(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(forecast, "WORTH_TIMING", 0)
    monkeypatch.setattr(forecast, "_step_seconds", lambda model, batch, cached: 100.0)
    analyze = layer_choice.analyze

    def when_told(*args: Any, **options: Any) -> Any:
        assert (
            "internal_layer auto: 4 answers of up to 6 tokens, sampled through transformers and measured by one process, at most 10 min"
            in (capsys.readouterr().err)
        )
        return analyze(*args, **options, progress=False)

    monkeypatch.setattr(layer_choice, "analyze", when_told)
    settings = {"monitor_every": 1, "monitor_problems": 3, "monitor_repeats": 4}
    make_trainer(tmp_path, internal_layer="auto", internal_rule="entropy_drop", internal_samples=4, internal_rollouts=1, **settings).train()
    told = (
        "a snapshot of the monitor: 15 answers of up to 6 tokens, sampled through transformers and measured by one process, at most 50 min"
    )
    assert capsys.readouterr().err.count(told) == 1, "five rounds of six steps of 100 seconds"


def test_two_processes_refuse_what_one_would_wait_too_long_for(tmp_path: Path) -> None:
    launch(wait, [tmp_path], 2, tmp_path / "log")
    main, other = (json.loads((tmp_path / f"{rank}.json").read_text()) for rank in (0, 1))
    assert main == other
    assert main["wait"] == 90
    done = "answers of up to 6 tokens, sampled through transformers and measured by one process, may take"
    for name, told in (("auto", f"internal_layer auto: 4 {done} 10 min"), ("monitor", f"a snapshot of the monitor: 6 {done} 20 min")):
        assert main[name].startswith(told)
        assert ", and the other processes wait 2 min: set ddp_timeout above " in main[name]
        assert "\n" not in main[name]
    assert not (tmp_path / "monitor" / "monitor").exists(), "nothing was sampled"
    assert main["steps"] == 1, "what is fast enough is trained"
    assert main["answers"] == [[1, 101], [2, 102], [3, 103]], "each process samples its share, and has all answers"
    assert main["shares"] == [[[1], [2]], [[3], [3]]]
