"""How far a piece of work is: a bar where there is a terminal, a line every half minute where there is none."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

OnTokens = Callable[[float, int], None]
"""Takes the share (of 1) of a piece of work that has passed, and the tokens made since it was told last."""

EVERY_SECONDS = 30.0
"""Time between two lines of a progress that no terminal shows."""


class Progress:
    """Counts what is done of a piece of work. Called as `progress(steps, units)`: steps of `total`, units for the rate.

    Args:
        title: what is done, on what.
        total: steps of the whole work: samples, say.
        unit: what the rate counts: "tokens".
        clock: gives seconds.
    """

    def __init__(self, title: str, total: int, unit: str, clock: Callable[[], float] = time.monotonic):
        self.title, self.total, self.unit, self._clock = title, total, unit, clock
        self.steps: int | float = 0
        self.units, self.state = 0, ""
        self.is_bound = False
        self._there: int | float = 0
        self._start = clock()
        self._changed: Callable[[], None] = lambda: None

    def __call__(self, steps: int | float, units: int = 0) -> None:
        self.steps += steps
        self.units += units
        self._changed()

    def already(self, steps: int | float) -> None:
        """Counts steps that were done before this process began: they say nothing of the time that the others take."""
        self._there += steps
        self(steps)

    @contextmanager
    def parts(self, steps: int) -> Iterator[OnTokens]:
        """A context in which `steps` are under way, and counted by parts; whatever is left of them counts at its end.

        Yields what takes the share of the steps that has passed, of 1, and the units made since the last call.
        """
        before = self.steps

        def on_tokens(share: float, units: int) -> None:
            self(min(share, 1.0) * steps - (self.steps - before), units)

        yield on_tokens
        self(steps - (self.steps - before))

    def doing(self, state: str) -> None:
        """Says what is going on if it is not what the title says, such as waiting; "" if it is."""
        self.state = state
        self._changed()

    def at_most(self) -> None:
        """Says that the time left is a bound: the work may be shorter than `total` says."""
        self.is_bound = True

    @property
    def elapsed(self) -> float:
        """Seconds since the beginning."""
        return self._clock() - self._start

    @property
    def rate(self) -> str:
        """Units per second, in words; "" before the first."""
        return f"{self.units / self.elapsed:,.0f} {self.unit}/s" if self.units and self.elapsed > 0 else ""

    @property
    def seconds_left(self) -> float | None:
        """Seconds that the rest takes at the pace so far, of all processes together; None before the first step."""
        done = self.steps - self._there
        return self.elapsed * max(self.total - self.steps, 0) / done if done > 0 else None

    def line(self) -> str:
        """What is done, how fast, what is left, and what is going on, in one line."""
        left = self.seconds_left
        parts = [f"{self.steps:,.0f} of {self.total:,}" if self.steps >= 1 or left is None else f"{self.steps / self.total:.1%}"]
        parts += [self.rate] if self.rate else []
        parts += [f"{'at most ' if self.is_bound else ''}{duration(left)} left"] if left is not None else []
        return f"{self.title}: {', '.join(parts)}{f' ({self.state})' if self.state else ''}"


class LineReporter:
    """Prints a progress's line when `EVERY_SECONDS` have passed since the last one.

    Args:
        write: takes a line.
        clock: gives seconds.
        now: gives the time of day that stands in front of a line.
    """

    def __init__(
        self,
        progress: Progress,
        write: Callable[[str], object],
        clock: Callable[[], float] = time.monotonic,
        now: Callable[[], str] = lambda: time.strftime("%H:%M:%S"),
    ):
        self.progress, self._write, self._clock, self._now = progress, write, clock, now
        self._last = clock()
        self.printed = False

    def tick(self) -> None:
        """Prints the line if it is time."""
        if self._clock() - self._last >= EVERY_SECONDS:
            self._last = self._clock()
            self.printed = True
            self._write(f"{self._now()} {self.progress.line()}")

    def close(self) -> None:
        """Says how long it took, if any line was printed before."""
        if self.printed:
            self._write(f"{self._now()} {self.progress.title}: done in {duration(self.progress.elapsed)}")


@contextmanager
def progress_bar(title: str, total: int, unit: str, show: bool | None = None) -> Iterator[Progress]:
    """Yields a `Progress`, which is shown on stderr: as a bar if that is a terminal, else as a line every half minute.

    `show`: True draws the bar in any case, False shows nothing.
    """
    progress = Progress(title, total, unit)
    if show is False:
        yield progress
    elif show or sys.stderr.isatty():
        with _drawn_as_bar(progress):
            yield progress
    else:
        with _printed_as_lines(progress):
            yield progress


@contextmanager
def _printed_as_lines(progress: Progress) -> Iterator[None]:
    reporter = LineReporter(progress, say)
    ended = threading.Event()

    def watch() -> None:
        while not ended.wait(EVERY_SECONDS / 10):
            reporter.tick()

    watcher = threading.Thread(target=watch, name="layerlens-progress", daemon=True)
    watcher.start()
    try:
        yield
        reporter.close()
    finally:
        ended.set()
        watcher.join()


@contextmanager
def _drawn_as_bar(progress: Progress) -> Iterator[None]:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn
    from rich.progress import Progress as Bar

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[rate]}"),
        TimeElapsedColumn(),
        TextColumn("{task.fields[left]}"),
    )
    with Bar(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task(progress.title, total=progress.total, rate="", left="")

        def show() -> None:
            left = progress.seconds_left
            shown = "" if left is None else f"{'at most ' if progress.is_bound else ''}{duration(left)} left"
            state = f" ({progress.state})" if progress.state else ""
            bar.update(task, completed=progress.steps, total=progress.total, rate=progress.rate, left=shown + state)

        progress._changed = show
        show()
        yield


def say(line: str) -> None:
    """Prints a line on stderr, where it appears at once."""
    print(line, file=sys.stderr, flush=True)


def duration(seconds: int | float) -> str:
    """A time in words: "40 s", "3 min", "2 h 10 min"."""
    if seconds < 60:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    hours, rest = divmod(minutes, 60)
    return f"{minutes} min" if not hours else f"{hours} h {rest} min" if rest else f"{hours} h"
