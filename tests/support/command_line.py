"""The command line, run in the process of a test."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple


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
