"""The numbers of a figure as a tidy table, read from what is drawn, so that the table cannot differ from the picture."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection, PolyCollection, QuadMesh
from matplotlib.colors import to_hex
from matplotlib.figure import Figure

from layerlens.plots.kit.figure import drawn_figure

COLUMNS = ["panel", "kind", "series", "x", "x_label", "y", "y_label", "value", "low", "high", "x_axis", "y_axis", "value_axis"]
"""The columns of `data`."""

COLOR_BAR = "<colorbar>"
"""matplotlib's label of the axes of a colour bar."""


def data(drawn: Figure | Axes | np.ndarray) -> pd.DataFrame:
    """The numbers of a figure as a tidy table, exactly as they are drawn.

    Args:
        drawn: what a plot returned (axes, an array of axes) or a figure.

    Returns:
        One row per point of a line, interval without a line, and cell of a heat map that is not left open. `kind` is "line",
        "interval" or "cell"; `panel` is the title of its axes (else what its y axis shows), `series` the legend entry (else the
        colour). `value` is what is drawn, with its interval from `low` to `high`, in the unit that `value_axis` names; x is where,
        and of a cell y too, with the tick labels there, if any. Lines that only guide the eye are left out.
    """
    figure = drawn_figure(drawn)
    bars = [ax for ax in figure.axes if ax.get_label() == COLOR_BAR]
    rows = [row for ax in figure.axes if ax not in bars for row in _rows(ax, bars[0].get_ylabel() if bars else "")]
    table = pd.DataFrame(rows, columns=COLUMNS)
    return table.replace({"value_axis": {"\n": " "}}, regex=True)


def _rows(ax: Axes, of_bar: str) -> Iterator[dict[str, Any]]:
    panel = next((title for place in ("left", "center", "right") if (title := ax.get_title(place))), ax.get_ylabel())
    axes = {"panel": panel, "x_axis": ax.get_xlabel(), "y_axis": ax.get_ylabel()}
    names = _series_names(ax)
    bands = {_hex(band.get_facecolor()): _ends(band) for band in ax.collections if isinstance(band, PolyCollection)}
    for line in ax.lines:
        if line.get_transform() != ax.transData:
            continue  # a guide across the axes
        color = to_hex(line.get_color())
        own = str(line.get_label())
        series = names.get(color, color) if own.startswith("_") else own
        ends = bands.get(color, {})
        for x, value in zip(*(np.asarray(values, float) for values in line.get_data()), strict=True):
            if np.isfinite(value):
                low, high = ends.get(round(float(x), 9), (np.nan, np.nan))
                yield {
                    **axes,
                    "kind": "line",
                    "series": series,
                    "x": x,
                    "value": value,
                    "low": low,
                    "high": high,
                    "value_axis": axes["y_axis"],
                }
    for collection in ax.collections:
        if isinstance(collection, LineCollection):
            color = _hex(collection.get_color())
            for segment in collection.get_segments():
                if len(segment) == 2 and segment[0][0] == segment[1][0]:
                    (x, one), (_, other) = segment
                    low, high = sorted((one, other))
                    yield {
                        **axes,
                        "kind": "interval",
                        "series": names.get(color, color),
                        "x": x,
                        "low": low,
                        "high": high,
                        "value_axis": axes["y_axis"],
                    }
        elif isinstance(collection, QuadMesh):
            yield from ({**axes, **cell, "value_axis": of_bar} for cell in _cells(ax, collection))


def _cells(ax: Axes, mesh: QuadMesh) -> Iterator[dict[str, Any]]:
    corners: np.ndarray = np.asarray(mesh.get_coordinates())
    xs, ys = (corners[:-1, :-1, axis] / 2 + corners[1:, 1:, axis] / 2 for axis in (0, 1))
    values: Any = np.ma.masked_invalid(np.ma.asarray(mesh.get_array()).reshape(xs.shape))
    columns, rows = (_tick_labels(axis) for axis in (ax.xaxis, ax.yaxis))
    for place in zip(*np.nonzero(~np.ma.getmaskarray(values)), strict=True):
        x, y = float(xs[place]), float(ys[place])
        yield {
            "kind": "cell", "x": x, "x_label": columns.get(x, ""), "y": y, "y_label": rows.get(y, ""), "value": float(values[place]),
        }  # fmt: skip


def _tick_labels(axis: Any) -> dict[float, str]:
    """The label at each place of an axis. Labels that count up by one, thinned so that they fit, are filled in."""
    shown = {float(place): label.get_text() for place, label in zip(axis.get_ticklocs(), axis.get_ticklabels(), strict=False)}
    shown = {place: text for place, text in shown.items() if text}
    shifts = {int(text) - place for place, text in shown.items()} if all(text.isdigit() for text in shown.values()) else set()
    if len(shifts) != 1:
        return shown
    first, last = (round(edge) for edge in sorted(axis.get_view_interval()))
    return {float(place): str(round(place + min(shifts))) for place in range(first, last + 1)}


def _hex(colors: Any) -> str:
    """The first of some colours, without its opacity; "" if there is none."""
    return to_hex(colors[0]) if len(colors) else ""


def _series_names(ax: Axes) -> dict[str, str]:
    """The legend's entry of each colour."""
    legend = ax.get_legend()
    if legend is None:
        return {}
    handles: Any = zip(legend.legend_handles, legend.get_texts(), strict=False)
    return {to_hex(handle.get_color()): text.get_text() for handle, text in handles if hasattr(handle, "get_color")}


def _ends(band: PolyCollection) -> dict[float, tuple[float, float]]:
    """The lower and upper end of a band at each x."""
    ends: dict[float, tuple[float, float]] = {}
    for path in band.get_paths():
        for x, y in np.asarray(path.vertices):
            low, high = ends.get(round(float(x), 9), (np.inf, -np.inf))
            ends[round(float(x), 9)] = min(low, float(y)), max(high, float(y))
    return ends
