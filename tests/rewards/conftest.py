"""A module of checkers, some of which hang, raise or die, and guarded rewards made of them."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from layerlens.rewards.rewards import Reward

CHECKERS = """
import os, time

def good(completions, ground_truth, **columns):
    return [float(c == g) for c, g in zip(completions, ground_truth)]

def bad_mannered(completions, ground_truth, **columns):
    [text] = completions
    if text == "hang":
        while True:
            pass
    if text == "sleep":
        time.sleep(600)
    if text == "boom":
        raise RuntimeError("boom")
    if text == "exit":
        raise SystemExit(3)
    if text == "die":
        os._exit(1)
    if text == "none":
        return [None]
    if text == "words":
        return ["right"]
    if text == "two":
        return [1.0, 1.0]
    print("noise")
    return [float(text == ground_truth[0])]

async def later(completions, ground_truth, **columns):
    import asyncio
    await asyncio.sleep(0.01)
    return [float(c == g) for c, g in zip(completions, ground_truth)]

def columns(completions, difficulty, **columns):
    return [float(difficulty[0]) + len(columns)]
"""


@pytest.fixture
def checkers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """Makes guarded rewards of the functions above, and ends their processes."""
    (tmp_path / "my_checkers.py").write_text(CHECKERS)
    monkeypatch.syspath_prepend(str(tmp_path))
    made: list[Reward] = []

    def make(name: str, **options: Any) -> Reward:
        made.append(Reward(f"my_checkers:{name}", **options))
        return made[-1]

    yield make
    sys.modules.pop("my_checkers", None)
    for reward in made:
        reward.close()
