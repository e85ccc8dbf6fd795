"""Figures as plain values: what the page draws with its charting library, and lists in the table behind each figure."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import xarray as xr

from layerlens.errors import LayerLensError
from layerlens.report.arrays import plain_list
from layerlens.results import Run

Figure = dict[str, Any]
"""`id`, `title` and `kind`; either what is drawn, with a `note` of what was averaged, or `missing`, why it is not."""


def attempted(name: str, title: str, make: Callable[[], Figure]) -> Figure:
    """The figure, or in its place the one line that says why the data hold none."""
    try:
        return {"id": name, "title": title, **make()}
    except LayerLensError as error:
        return {"id": name, "title": title, "kind": "missing", "missing": str(error)}


def lines(series: Sequence[Mapping[str, Any]], x: str, y: str, unit: str, **more: Any) -> Figure:
    """Curves over layers (x "layer") or another number.

    Args:
        series: made by `curve` or `segments`.
        x, y: titles of the axes.
        unit: of the values, as the page writes it behind them.
        more: `picks` (keys of each series' `pick`, by which the reader chooses what is shown), `named` (the pick that names what y is),
            `phases`, `marks`, `zero`, `note`, `wide`.
    """
    return {"kind": "lines", "series": list(series), "x": x, "y": y, "unit": unit, **more}


def curve(name: str, x: Sequence[Any], mean: xr.Dataset, *, group: int = 0, layers: int | None = None, **pick: str) -> dict[str, Any]:
    """A curve of `mean` with its interval from `low` to `high`. `group` numbers what shares a colour, `layers` is L for relative depth."""
    parts = {part: plain_list(mean[part].values) for part in ("mean", "low", "high")}
    return {"name": name, "x": list(map(float, x)), **parts, "group": group, "L": layers, "pick": pick}


def segments(name: str, x: Sequence[float], before: xr.Dataset, after: xr.Dataset, *, group: int, **pick: str) -> dict[str, Any]:
    """For each x a step from the mean of `before` to that of `after`."""
    return {**curve(name, x, after, group=group, layers=None, **pick), "start": plain_list(before["mean"].values), "segments": True}


def heat(panels: Sequence[Mapping[str, Any]], x: str, y: str, unit: str, **more: Any) -> Figure:
    """Coloured cells, made by `panel`; arguments as in `lines`, and `scale`: "sequential", "diverging" or "unit" (0 to 1)."""
    return {"kind": "heat", "panels": list(panels), "x": x, "y": y, "unit": unit, **more}


def panel(x: Sequence[Any], y: Sequence[Any], mean: xr.Dataset, **pick: str) -> dict[str, Any]:
    """Cells of `mean`, whose rows are y and columns x, with their intervals if there are any."""
    cells = {part: plain_list(mean[part].values) for part in ("mean", "low", "high") if np.isfinite(mean[part].values).any()}
    return {"x": [str(label) for label in x], "y": [str(label) for label in y], **cells, "pick": pick}


def averaged(run: Run, attrs: Mapping[str, Any]) -> list[str]:
    """What a mean is over, in parts of a sentence, from the attrs of `Run.mean`."""
    rows = (
        f"{attrs['segment']} rows"
        if attrs.get("segment")
        else {"response": "response rows", "all": "all rows"}.get(attrs["rows"], "the rows of the paper's code")
    )
    weighting = "mean of per-sample means" if attrs["over"] == "sample" else "mean over tokens"
    samples, problems = int(attrs["samples"]), int(attrs.get("problems", attrs["samples"]))
    lens = ", logit lens" if run.lens == "logit" else ""
    over = "samples" if problems == samples else f"{problems} problems"
    interval = "no interval: one problem" if problems < 2 else f"{100 * attrs['level']:g}% bootstrap interval over {over}"
    return [f"norm: {run.convention}{lens}", f"{samples} sample{'s' * (samples != 1)}", f"{weighting}, {rows}", interval]


def notes(runs: Sequence[Run], means: Sequence[Mapping[str, Any]], names: Sequence[str]) -> str:
    """`averaged` of all runs: what is the same for all is said once, of the rest what holds for which."""
    said = zip(*(averaged(run, attrs) for run, attrs in zip(runs, means, strict=True)), strict=True)
    return " · ".join(_of_runs(parts, names) for parts in said)


def _of_runs(parts: Sequence[str], names: Sequence[str]) -> str:
    of = {part: [name for name, other in zip(names, parts, strict=True) if other == part] for part in dict.fromkeys(parts)}
    return parts[0] if len(of) == 1 else "; ".join(f"{part} for {', '.join(having)}" for part, having in of.items())
