"""Progress: what a line says, and when it is printed, by a clock that the test turns."""

from __future__ import annotations

import io
import sys

import pytest

from layerlens.progress import EVERY_SECONDS, LineReporter, Progress, duration, progress_bar


class Clock:
    """Seconds that pass when the test says so."""

    def __init__(self) -> None:
        self.seconds = 100.0

    def __call__(self) -> float:
        return self.seconds


def test_a_line_is_printed_every_half_minute_and_says_what_is_going_on() -> None:
    clock = Clock()
    lines: list[str] = []
    progress = Progress("measuring m", 100, "tokens", clock)
    reporter = LineReporter(progress, lines.append, clock, now=lambda: "12:00:00")
    progress.already(20)
    for second in range(95):
        clock.seconds += 1
        if second == 9:
            progress(10, 3000)
        if second == 49:
            progress.doing("waiting for another process")
        reporter.tick()
    assert lines == [
        "12:00:00 measuring m: 30 of 100, 100 tokens/s, 4 min left",
        "12:00:00 measuring m: 30 of 100, 50 tokens/s, 7 min left (waiting for another process)",
        "12:00:00 measuring m: 30 of 100, 33 tokens/s, 10 min left (waiting for another process)",
    ]
    reporter.close()
    assert lines[-1] == "12:00:00 measuring m: done in 2 min"


def test_short_work_prints_nothing() -> None:
    clock = Clock()
    lines: list[str] = []
    reporter = LineReporter(Progress("m", 2, "tokens", clock), lines.append, clock)
    clock.seconds += EVERY_SECONDS - 1
    reporter.tick()
    reporter.close()
    assert lines == []


def test_what_was_there_before_says_nothing_of_the_time_left() -> None:
    clock = Clock()
    fresh, continued = Progress("m", 10, "tokens", clock), Progress("m", 100, "tokens", clock)
    continued.already(90)
    clock.seconds += 5
    assert fresh.seconds_left is None
    assert fresh.line() == "m: 0 of 10"
    for progress in (fresh, continued):
        progress(2, 10)
    assert fresh.seconds_left == continued.seconds_left == 20


def test_a_part_of_a_step_is_told_as_a_share_and_a_bound_as_a_bound() -> None:
    clock = Clock()
    progress = Progress("sampling m", 4, "tokens", clock)
    progress.at_most()
    clock.seconds += 10
    progress(0.5, 100)
    assert progress.line() == "sampling m: 12.5%, 10 tokens/s, at most 1 min left"


@pytest.mark.parametrize(
    ("seconds", "words"), [(0.4, "0 s"), (59, "59 s"), (61, "1 min"), (3599, "1 h"), (7800, "2 h 10 min"), (7200, "2 h")]
)
def test_durations_in_words(seconds: float, words: str) -> None:
    assert duration(seconds) == words


@pytest.mark.parametrize("show", [None, False])
def test_without_a_terminal_quick_work_is_silent_and_leaves_no_thread(show: bool | None, monkeypatch: pytest.MonkeyPatch) -> None:
    import threading

    err = io.StringIO()
    monkeypatch.setattr(sys, "stderr", err)
    with progress_bar("m", 2, "tokens", show) as advance:
        advance(2, 10)
        assert any(thread.name == "layerlens-progress" for thread in threading.enumerate()) == (show is None)
    assert err.getvalue() == ""
    assert not any(thread.name == "layerlens-progress" for thread in threading.enumerate())


def test_lines_reach_stderr_when_their_time_comes(monkeypatch: pytest.MonkeyPatch) -> None:
    import time

    monkeypatch.setattr("layerlens.progress.EVERY_SECONDS", 0.02)
    err = io.StringIO()
    monkeypatch.setattr(sys, "stderr", err)
    with progress_bar("measuring m", 2, "tokens") as advance:
        advance(1, 10)
        until = time.monotonic() + 5
        while "measuring m: 1 of 2" not in err.getvalue() and time.monotonic() < until:
            time.sleep(0.01)
    assert "measuring m: 1 of 2" in err.getvalue()
    assert err.getvalue().splitlines()[-1].endswith("measuring m: done in 0 s")


def test_a_terminal_gets_a_bar(monkeypatch: pytest.MonkeyPatch) -> None:
    err = io.StringIO()
    monkeypatch.setattr(sys, "stderr", err)
    with progress_bar("measuring m", 2, "tokens", True) as advance:
        advance(1, 10)
        advance.doing("waiting for another process")
    assert "measuring m" in err.getvalue()
    assert "1/2" in err.getvalue()
    assert "waiting for another process" in err.getvalue()


def test_the_parts_of_steps_add_up_to_the_steps() -> None:
    progress = Progress("sampling m", 8, "tokens")
    progress(2)
    with progress.parts(4) as on_tokens:
        for step in range(1, 5):
            on_tokens(step / 8, 3)
        assert progress.steps == 4, "half of the four"
    assert (progress.steps, progress.units) == (6, 12)
