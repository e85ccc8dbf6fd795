"""A progress bar with a rate and the remaining time."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager


@contextmanager
def progress_bar(title: str, total: int, unit: str, show: bool | None = None) -> Iterator[Callable[[int, int], None]]:
    """Yields `advance(steps, units)`: steps move the bar towards `total`, units (tokens, for example) make its rate.

    The bar is shown on stderr, by default only if stderr is a terminal.
    """
    if not (sys.stderr.isatty() if show is None else show):
        yield lambda steps, units: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[rate]}"),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(stderr=True)) as progress:
        task = progress.add_task(title, total=total, rate="")
        done = 0

        def advance(steps: int, units: int) -> None:
            nonlocal done
            done += units
            elapsed = progress.tasks[task].elapsed or 0.0
            progress.update(task, advance=steps, rate=f"{done / elapsed:,.0f} {unit}/s" if elapsed > 0 else "")

        yield advance
