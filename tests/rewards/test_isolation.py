"""Checks run in processes of their own: no answer whatever stops a trainer, and no process outlives it."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest


def test_reward_scores_0_and_counts_if_a_check_hangs_raises_or_dies(checkers: Any, caplog: pytest.LogCaptureFixture) -> None:
    reward = checkers("bad_mannered", timeout=4.0, workers=1)
    texts = ["7", "boom", "7", "exit", "die", "7", "words", "two", "hang", "7", "8"]
    with caplog.at_level(logging.WARNING):
        assert reward(texts, ["7"] * len(texts)) == [1, 0, 1, 0, 0, 1, 0, 0, 0, 1, 0]
    assert (reward.counts.answers, reward.counts.hung, reward.counts.raised) == (11, 1, 5)
    [told] = caplog.messages
    assert "RuntimeError: boom" in told
    metrics: dict[str, float] = {}
    assert reward(["boom", "7"], ["7", "7"], log_metric=metrics.__setitem__) == [0, 1]
    assert metrics == {"bad_mannered/hung": 0, "bad_mannered/raised": 1}
    assert reward(["none"], ["7"])[0] != reward(["none"], ["7"])[0]  # NaN: TRL leaves it out


def test_an_async_function_is_run_to_its_end(checkers: Any) -> None:
    reward = checkers("later", timeout=60.0)
    assert reward(["a", "b"], ["a", "c"]) == [1, 0]
    assert reward.counts.raised == 0


def test_reward_ends_hung_checks_side_by_side(checkers: Any) -> None:
    reward = checkers("bad_mannered", timeout=4.0, workers=3)
    assert reward(["7"] * 3, ["7"] * 3) == [1, 1, 1]
    start = time.perf_counter()
    assert reward(["sleep"] * 3, ["7"] * 3) == [0, 0, 0]
    assert time.perf_counter() - start < 10
    assert reward.counts.hung == 3


def test_reward_in_a_forked_child_has_processes_of_its_own(checkers: Any) -> None:
    reward = checkers("good", timeout=60.0)
    assert reward(["a"], ["a"]) == [1]
    child = os.fork()
    if child == 0:
        try:
            right = reward(["b"], ["b"]) == [1]
            reward.close()
            os._exit(0 if right else 2)
        finally:
            os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert reward(["a", "b"], ["a", "c"]) == [1, 0]
    assert reward.counts.raised == 0


def test_checking_process_ends_with_its_parent(tmp_path: Path) -> None:
    code = (
        "from layerlens.rewards.rewards import Reward\n"
        "r = Reward('layerlens.rewards.rewards:boxed_reward', workers=1)\n"
        "assert r(['x'], ['x']) == [0.0]\n"
        "[p] = r._pool.running\n"
        "print(p.process.pid, flush=True)\n"
        "import os, signal; os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    parent = subprocess.run([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, check=False)
    child, deadline = int(parent.stdout), time.monotonic() + 60
    while time.monotonic() < deadline and _alive(child):
        time.sleep(0.05)
    assert not _alive(child)


def _alive(pid: int) -> bool:
    try:
        return "Z" not in Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
    except FileNotFoundError:
        return False
