"""A report: from runs and training folders to the page."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

from layerlens.errors import LayerLensError, SelectionError
from layerlens.report.overview import Overview, run_names
from layerlens.report.page import page
from layerlens.report.text import texts
from layerlens.report.training import trainings
from layerlens.results import Run, TrainingLog
from layerlens.results.correctness import require_reward
from layerlens.results.schema import DIMS
from layerlens.storage.files import write_text
from layerlens.types import Rows, Segment, Weighting

MEGABYTES = 15.0
FRAME = 2_400_000
"""Bytes that the charting library and the page's own program take, about."""
NO_REWARD = "To tell right responses from wrong ones, name a reward: --reward math, boxed, arithmetic or module:function."


@dataclass(frozen=True)
class ReportOptions:
    """How a report averages, and what it may weigh.

    Attributes:
        rows, over, segment: of the means, as in `Run.mean`.
        reward: says which responses are right, as in `Run.correct`; None leaves that open.
        megabytes: size of the file, in 10^6 bytes, which decides how much of the texts it holds; means and trainings are always whole.
    """

    rows: Rows = "response"
    over: Weighting = "sample"
    segment: Segment | None = None
    reward: str | None = None
    megabytes: float = MEGABYTES

    def __post_init__(self) -> None:
        if not self.megabytes > 0:
            raise SelectionError(f"a report must be allowed more than 0 megabytes, got {self.megabytes}")
        if self.reward is not None:
            require_reward(self.reward)

    @property
    def means(self) -> dict[str, Any]:
        """The options of `Run.mean`."""
        return {"rows": self.rows, "over": self.over, "segment": self.segment}


def write_report(
    runs: Run | Sequence[Run] = (), training: TrainingLog | Sequence[TrainingLog] = (), *, out: str | Path = "report.html", **options: Any
) -> Path:
    """Writes one self-contained page: an overview, the texts token by token, and training runs.

    Args:
        runs, training: what to show; at least one of either.
        out: the file to write, which ends in .html. It needs no network and no other file.
        options: fields of `ReportOptions`.

    Returns:
        The file.

    Raises:
        SelectionError: nothing to show, another ending, or no run has rows of the segment.
        LayerLensError: there is no such reward, or plotly is not installed.
    """
    file = Path(out).expanduser()
    if file.suffix.lower() not in (".html", ".htm"):  # by a slip of the keyboard it may be a file of another kind
        raise SelectionError(f"cannot write a page into {file.name!r}: choose a name that ends in .html")
    write_text(file, report_html(runs, training, **options))
    return file


def report_html(
    runs: Run | Sequence[Run] = (), training: TrainingLog | Sequence[TrainingLog] = (), *, live: bool = False, **options: Any
) -> str:
    """The page of `write_report` as a text; `live` lets it ask `layerlens watch` for news."""
    return page(report_data(runs, training, **options), live=live)


def report_data(runs: Run | Sequence[Run] = (), training: TrainingLog | Sequence[TrainingLog] = (), **options: Any) -> dict[str, Any]:
    """What a report shows, as plain values. Arguments and errors as in `write_report`."""
    chosen = ReportOptions(**options)
    shown, logs = [runs] if isinstance(runs, Run) else list(runs), [training] if isinstance(training, TrainingLog) else list(training)
    if not shown and not logs:
        raise SelectionError("a report needs a run or a training folder")
    if shown and chosen.segment is not None:
        _require_segment(shown, chosen)
    names = run_names(shown)
    overview = Overview(shown, names, chosen.means).plain() if shown else None
    trained = trainings(logs) if logs else None
    left = int(chosen.megabytes * 1e6) - FRAME - len(str(overview)) - len(str(trained))
    read: list[dict[str, Any]] = []
    for run, name in zip(shown, names, strict=True):
        read.append(_texts(run, name, chosen, left // (len(shown) - len(read))))
        left -= read[-1].pop("bytes", 0)
    return {
        "made": datetime.now(UTC).isoformat(timespec="seconds"),
        "layerlens": version("layerlens-policy"),
        "overview": overview,
        "texts": read,
        "training": trained,
    }


def _require_segment(runs: Sequence[Run], options: ReportOptions) -> None:
    """Raises what the last run raises if none has rows of the segment: a page would have no figures of means."""
    why: SelectionError | None = None
    for run in runs:
        measured = next((name for name in run.variables if len(DIMS.get(name, ())) == 3 and DIMS[name][0] == "token"), None)
        try:
            if measured is not None:
                run.bootstrap(measured, **options.means, resamples=1)
        except SelectionError as error:
            why = error
        else:
            return
    if why is not None:
        raise why


def _texts(run: Run, name: str, options: ReportOptions, left: int) -> dict[str, Any]:
    """A run's texts in about `left` bytes, or why there are none."""
    right: Any = NO_REWARD
    if options.reward is not None:
        try:
            right = list(map(bool, run.correct(options.reward)))
        except LayerLensError as error:
            right = str(error)
    elif "correct" in run.data.coords and (run.data["correct"].values >= 0).any():  # as the source of the texts said
        right = [None if said < 0 else bool(said) for said in run.data["correct"].values]
    try:
        return {"name": name, "megabytes": options.megabytes, **texts(run, right, left)}
    except LayerLensError as error:
        return {"name": name, "missing": str(error)}
