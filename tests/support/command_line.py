"""The command line, run in the process of a test."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import NamedTuple

import pytest

from layerlens.cli import main


class Ended(NamedTuple):
    code: int
    out: str
    err: str


Layerlens = Callable[..., Ended]


def one_line(ended: Ended, *said: str) -> None:
    assert ended.code == 2, ended
    assert ended.err.count("\n") == 1, ended.err
    assert ended.err.startswith("layerlens: ")
    assert all(text in ended.err for text in said), ended.err
    assert ended.out == ""


def command(monkeypatch: pytest.MonkeyPatch, *words: str) -> int:
    """The exit code of a command; what it prints is the test's own."""
    monkeypatch.setattr(sys, "argv", ["layerlens", *words])
    with pytest.raises(SystemExit) as end:
        main()
    return int(end.value.code or 0)
