"""The heat map of one sample: its tokens under the columns, prompt and response told apart."""

from __future__ import annotations

from math import ceil
from typing import Any

import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.collections import QuadMesh

from layerlens.errors import SelectionError
from layerlens.plots.kit.axes import set_title
from layerlens.plots.kit.figure import axes_size
from layerlens.plots.kit.heat_map import heat_map
from layerlens.plots.kit.labels import families, token_label
from layerlens.plots.kit.layer_axis import number_axis
from layerlens.plots.kit.run_data import column_dim
from layerlens.plots.kit.scale import Scale
from layerlens.plots.kit.style import MODULE_NAMES

TOKEN_INCHES = 0.135
ROW_INCHES = 0.14
LABEL_SIZE = 6.5


def cells_at(values: xr.DataArray, metric: str, site: str | None, holder: str) -> tuple[str, np.ndarray]:
    """The name of the site (or module), by default `resid_post` or `ffn`, and the values there, layer × token, float64.

    Raises SelectionError, which names the metric and the `holder` of the values, if they have no such site.
    """
    dim = column_dim(values)
    where = site or ("ffn" if dim == "module" else "resid_post")
    there = [str(name) for name in values[dim].values]
    if where not in there:
        raise SelectionError(f"no {metric} at {dim} {where!r} in {holder}; choose one with site=: {', '.join(there)}")
    cells = values.sel({dim: where}).transpose("layer", "token").values.astype(np.float64)
    return MODULE_NAMES.get(where, where), cells


def token_heat_map(cells: np.ndarray, rows: xr.Dataset, layers: list[int], scale: Scale, label: str, *, title: str, **options: Any) -> Axes:
    """Draws layer × token, with a title.

    Args:
        cells: layers × tokens.
        rows: the rows of the sample that the columns are: token texts, positions, and which of them predict the response.
        layers: numbers of the layers, from the bottom.
        scale, label, options: as in `heat_map`.
    """
    width, height = 1.7 + TOKEN_INCHES * cells.shape[1], 2.1 + ROW_INCHES * cells.shape[0]
    size = float(np.clip(width, 4.5, 13)), float(np.clip(height, 3, 8.5))
    response = rows["in_response"].values.astype(bool)

    def label_axes(ax: Axes, _: QuadMesh) -> None:
        number_axis(ax.yaxis, layers, 0.85 * axes_size(ax)[1], apart=0.12, rows=True)
        _label_tokens(ax, rows)
        marked = _mark_response(ax, response)
        set_title(ax, title, pad=14.0 if marked else 5.0)

    ax = heat_map(cells, scale, label, size=size, tail=True, after_layout=label_axes, **options)
    ax.tick_params(axis="x", labelsize=LABEL_SIZE)
    return ax


def _label_tokens(ax: Axes, rows: xr.Dataset) -> None:
    """Each token under its column, or every n-th with its position if there is no room for all."""
    n = rows.sizes["token"]
    step = max(1, ceil(0.105 * n / axes_size(ax)[0]))
    texts, positions = rows["token_text"].values, rows["position"].values
    places = range(0, n, step)
    names = [token_label(str(texts[i])) if step == 1 else f"{positions[i]}  {token_label(str(texts[i]))}" for i in places]
    ax.set_xticks(places, names, rotation=90, fontfamily=families())
    thinned = f" ({'every other' if step == 2 else f'1 in {step}'} named, with its position)" if step > 1 else ""
    ax.set_xlabel(f"token read; its column is the policy of the next token{thinned}")


def _mark_response(ax: Axes, response: np.ndarray) -> bool:
    """A line before the first column that predicts the response, and after the last; whether words stand above the first."""
    n = len(response)
    if not response.any() or response.all():
        return False
    first, last = int(response.argmax()), n - int(response[::-1].argmax())
    # the very last row predicts nothing that stands in the text: no line for it
    for edge in [edge for edge in (first, last) if 0 < edge < n - (edge == last)]:
        ax.axvline(edge - 0.5, color="white", linewidth=2.2)
        ax.axvline(edge - 0.5, color="black", linewidth=1.1, linestyle=(0, (3, 1.5)))
    if first == 0:
        return False
    above: dict[str, Any] = {"transform": ax.get_xaxis_transform(), "va": "bottom", "fontsize": LABEL_SIZE, "color": "0.25"}
    column = axes_size(ax)[0] / n
    if first * column > 0.85:
        ax.text(first - 0.5, 1.01, "predicts prompt ◂ ", ha="right", **above)
    ax.text(first - 0.5, 1.01, " ▸ predicts response" if (n - first) * column > 0.95 else " ▸", ha="left", **above)
    return True
