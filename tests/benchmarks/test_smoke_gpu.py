"""The steps that wait for a card, taken on the CPU at small shapes, and the driver that limits each one's time."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks import smoke_gpu, smoke_steps

ROOT = Path(__file__).resolve().parents[2]
pytestmark = pytest.mark.filterwarnings("default")  # a step's own; child processes have none of pytest's


@pytest.mark.parametrize("step", [step for step in smoke_gpu.SECONDS if step != "kernels"])  # these laws are collected on their own
def test_every_step_holds_on_a_cpu(step: str) -> None:
    outcome = getattr(smoke_steps, step)("cpu")
    assert outcome.ok is (None if step == "vllm" else True), outcome
    assert json.loads(json.dumps(outcome.given())).keys() == ({"skipped"} if step == "vllm" else {"figure", "bound"})


def test_a_step_that_is_not_done_in_time_is_ended_and_said_so() -> None:
    result = smoke_gpu.run("readout", cpu=True, limit=0.2)
    assert (result["ok"], result["error"]) == (False, "not done after 0.2 seconds")
    assert result["seconds"] < 10


def test_a_step_that_fails_gives_its_last_line_and_the_exit_code(tmp_path: Path) -> None:
    out = tmp_path / "smoke.json"
    command = [sys.executable, "benchmarks/smoke_gpu.py", "--only", "toolchain", "--out", str(out)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env={"PATH": "/usr/bin:/bin", "CUDA_VISIBLE_DEVICES": ""})
    assert done.returncode == 1
    assert done.stderr == "smoke_gpu.py: failed: toolchain\n"
    (result,) = json.loads(out.read_text())
    assert result == json.loads(done.stdout)
    assert result["error"] == "there is no CUDA device here; --cpu runs what can run without one"


def test_an_unknown_step_is_refused_in_one_line() -> None:
    command = [sys.executable, "benchmarks/smoke_gpu.py", "--only", "readout,warp"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stderr.startswith("smoke_gpu.py: no step 'warp'; choose from toolchain, kernels, ")
