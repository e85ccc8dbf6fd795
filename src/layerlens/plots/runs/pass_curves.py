"""Pass@k, the probability that at least one of k sampled answers is right, of any number of models."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

from layerlens.errors import SelectionError
from layerlens.plots.kit.axes import open_frame, title_and_legend
from layerlens.plots.kit.caption import NO_INTERVAL, caption_text, complete_axes, listed
from layerlens.plots.kit.curves import draw_band
from layerlens.plots.kit.figure import axes_size, new_figure, run_layout
from layerlens.plots.kit.labels import numbered
from layerlens.plots.kit.style import line_style, styled

COLUMNS = ("model", "task", "k", "mean", "low", "high")
"""Columns that a table of Pass@k must have; if it has `problems`, `answers`, `unchecked`, `temperature` and `level`, the caption names
them, and `answers_low` and `answers_high` are drawn as bars."""


@styled
def pass_curves(tables: pd.DataFrame | Sequence[pd.DataFrame], task: str | None = None, *, ax: Axes | None = None) -> Axes:
    """Pass@k over k on a logarithmic axis, one line per model, with a band for other problems like these and bars for other answers.

    Args:
        tables: tidy tables as `Evaluation.pass_at` makes them, one row per model, task and k (columns: COLUMNS of this file). A
            model that comes in several tables is drawn once for each.
        task: which task to draw; it may be left out if the tables hold only one.
        ax: axes to draw into; a new figure by default.

    Raises:
        SelectionError: a column is missing, the tables lack the task, or they hold several tasks and none is named.
    """
    curves = _curves(tables, task)
    names = numbered([str(curve["model"].iloc[0]) for curve in curves])
    target = ax or new_figure(4.6, 3.2 + 0.1 * len(curves)).subplots()
    for number, (curve, name) in enumerate(zip(curves, names, strict=True)):
        _draw_line(target, curve, number, name if len(curves) > 1 else "")
    open_frame(target)
    target.set_xscale("log", base=2)
    run_layout(target)
    _number_ticks(target, sorted({int(k) for curve in curves for k in curve["k"]}))
    target.set_ylim(0, 1.03)
    target.set_xlabel("answers k")
    target.set_ylabel("Pass@k [share of problems]")
    shown = str(curves[0]["task"].iloc[0])
    title_and_legend(target, shown if len(curves) > 1 else f"{names[0]} · {shown}")
    complete_axes(target, _caption(curves, names), given=ax)
    return target


def _curves(tables: pd.DataFrame | Sequence[pd.DataFrame], task: str | None) -> list[pd.DataFrame]:
    """The rows of each line in the figure, sorted by k."""
    listed = [tables] if isinstance(tables, pd.DataFrame) else list(tables)
    for table in listed:
        lacking = [name for name in COLUMNS if name not in table.columns]
        if lacking:
            raise SelectionError(f"a Pass@k table needs the columns {', '.join(COLUMNS)}; {', '.join(lacking)} missing")
    tasks = list(dict.fromkeys(str(name) for table in listed for name in table["task"]))
    if not tasks:
        raise SelectionError("no Pass@k to draw: pass at least one table with rows")
    if task is None and len(tasks) > 1:
        raise SelectionError(f"the tables hold the tasks {', '.join(tasks)}: name one with task=")
    wanted = task or tasks[0]
    if wanted not in tasks:
        raise SelectionError(f"no task {wanted!r} in the tables; they hold {', '.join(tasks)}")
    chosen = [table[table["task"] == wanted] for table in listed]
    return [curve.sort_values("k") for table in chosen for _, curve in table.groupby("model", sort=False)]


def _draw_line(ax: Axes, curve: pd.DataFrame, number: int, label: str) -> None:
    style = line_style(number)
    k, mean, low, high = (curve[name].to_numpy(np.float64) for name in ("k", "mean", "low", "high"))
    draw_band(ax, k, low, high, style.color)
    if _has_bars(curve):
        ends = np.abs(curve[["answers_low", "answers_high"]].to_numpy(np.float64).T - mean)
        ax.errorbar(k, mean, ends, fmt="none", ecolor=style.color, elinewidth=1.1)
    ax.plot(k, mean, color=style.color, linestyle=style.linestyle, marker=style.marker, markeredgewidth=0.9, label=label)


def _number_ticks(ax: Axes, ks: list[int]) -> None:
    """Ticks at those of the ks that do not overlap, as whole numbers."""
    ax.set_xlim(ks[0] / 2**0.25, ks[-1] * 2**0.25)
    apart = 0.3 * np.log2(ks[-1] / ks[0] * 2**0.5) / axes_size(ax)[0]
    kept = [ks[0]]
    for k in ks[1:]:
        if np.log2(k / kept[-1]) >= apart:
            kept.append(k)
    ax.xaxis.set_major_locator(FixedLocator(kept))
    ax.xaxis.set_minor_locator(NullLocator())
    ax.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))


def _caption(curves: list[pd.DataFrame], names: list[str]) -> str:
    problems, answers = ([int(curve[name].iloc[0]) if name in curve else 0 for curve in curves] for name in ("problems", "answers"))
    return caption_text(
        f"Pass@k of {listed(names)}",
        _counted(problems, "problem", "problems"),
        _counted(answers, "answer each", "answers each, unbiased"),
        _unchecked(curves),
        _temperature(curves),
        _interval(curves, problems),
        "bars: for other answers to these very problems" if any(map(_has_bars, curves)) else "",
        "without spread, the band is a bound" if any("bound" in curve and curve["bound"].any() for curve in curves) else "",
    )


def _counted(counts: list[int], one: str, many: str) -> str:
    if not all(counts):
        return ""
    return f"{' / '.join(map(str, dict.fromkeys(counts)))} {one if set(counts) == {1} else many}"


def _unchecked(curves: list[pd.DataFrame]) -> str:
    counts = [int(curve["unchecked"].iloc[0]) if "unchecked" in curve else 0 for curve in curves]
    return f"{' / '.join(map(str, counts))} answers not checked, counted as wrong" if any(counts) else ""


def _temperature(curves: list[pd.DataFrame]) -> str:
    if not all("temperature" in curve for curve in curves):
        return ""
    return "T = " + " / ".join(dict.fromkeys(f"{float(curve['temperature'].iloc[0]):g}" for curve in curves))


def _interval(curves: list[pd.DataFrame], counts: list[int]) -> str:
    if not any(curve["low"].notna().any() for curve in curves):
        return f"1 problem: {NO_INTERVAL} for others" if set(counts) == {1} else NO_INTERVAL
    levels = {float(curve["level"].iloc[0]) for curve in curves if "level" in curve}
    level = f"{100 * levels.pop():g}% " if len(levels) == 1 else ""
    return f"band: {level}interval for other problems like these"


def _has_bars(curve: pd.DataFrame) -> bool:
    return "answers_low" in curve and bool(curve["answers_low"].notna().any())
