"""The heat map of one sample: its tokens under the columns, prompt and response told apart."""

from __future__ import annotations

from math import ceil
from typing import Any

import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.colors import ListedColormap, Normalize
from matplotlib.patches import Patch

from layerlens.errors import SelectionError
from layerlens.plots.axis import number_layers, set_title
from layerlens.plots.canvas import axes_size, new_figure, settle
from layerlens.plots.caption import describe, finish
from layerlens.plots.data import Limits, require_metric, second_dim
from layerlens.plots.labels import families, metric_label, plain, token_label
from layerlens.plots.mesh import color_bar, draw_mesh, normalize
from layerlens.plots.style import MODULE_NAMES, SCALES, STYLE
from layerlens.results import Run

TOKEN_INCHES = 0.135
ROW_INCHES = 0.14
LABEL_SIZE = 6.5
AGREEMENT = ListedColormap(["#E3E3E3", "#0072B2"], name="agreement")


def token_heatmap(
    run: Run, sample: int | str, site: str | None, metric: str, tokens: slice | None, limits: Limits, ax: Axes | None
) -> Axes:
    """Layer × token of one sample; arguments as in `entropy_heatmap`."""
    if metric == "perplexity":
        raise SelectionError("perplexity is of a whole run; draw metric='logp_next' for the tokens of one sample")
    require_metric(run, metric)
    rows = run.sample(sample)
    place, cells = token_cells(Run(rows, run.manifest), metric, site)
    n = rows.sizes["token"]
    window = np.arange(n)[tokens or slice(None)]
    if len(window) == 0:
        raise SelectionError(f"tokens={tokens} leaves none of the sample's {n} tokens")
    rows, cells = rows.isel(token=window), cells[:, window]

    size = np.clip(1.7 + TOKEN_INCHES * len(window), 4.5, 13), np.clip(2.1 + ROW_INCHES * cells.shape[0], 3, 8.5)
    target = ax or new_figure(float(size[0]), float(size[1])).subplots()
    _draw(target, cells, metric, limits)
    settle(target)
    number_layers(target.yaxis, run.layers, 0.85 * axes_size(target)[1], apart=0.12, rows=True)
    label_tokens(target, rows)
    marked = mark_response(target, rows["in_response"].values.astype(bool))
    name = str(rows["sample_id"].values[0])
    set_title(target, f"{run.model} · sample {name} · {place}", pad=14.0 if marked else 5.0)
    count = f"{n} tokens" if len(window) == n else f"{len(window)} of {n} tokens"
    finish(target, ax, describe(run, shows=f"one sample ({plain(name)}, {count}) at {place}: no mean, no interval"))
    target.tick_params(axis="x", labelsize=LABEL_SIZE)
    return target


def token_cells(run: Run, metric: str, site: str | None) -> tuple[str, np.ndarray]:
    """Where it is read, for people, and the values there, layer × token."""
    values = run.values(metric)
    dim = second_dim(values)
    where = site or ("ffn" if dim == "module" else "resid_post")
    there = [str(name) for name in values[dim].values]
    if where not in there:
        raise SelectionError(f"the run of {run.model} has no {metric} at {dim} {where!r}; choose one with site=: {', '.join(there)}")
    cells = values.sel({dim: where}).transpose("layer", "token").values.astype(np.float64)
    return MODULE_NAMES.get(where, where), cells


def _draw(ax: Axes, cells: np.ndarray, metric: str, limits: Limits) -> None:
    scale = SCALES[metric]
    if metric != "agrees":
        mesh = draw_mesh(ax, cells, normalize(scale, cells, limits, tail=True), scale)
        color_bar(ax, mesh, cells, metric_label(metric, mean=False))
        return
    draw_mesh(ax, cells, Normalize(0, 1), scale).set_cmap(AGREEMENT)
    handles = [
        Patch(color=AGREEMENT(1.0), label="the final policy's\nmost likely token"),
        Patch(color=AGREEMENT(0.0), label="another token"),
    ]
    ax.legend(handles=handles, loc="upper left", bbox_to_anchor=(1.0, 1.0), fontsize=STYLE["legend.fontsize"], frameon=False)


def label_tokens(ax: Axes, rows: xr.Dataset) -> None:
    """Each token under its column, or every n-th with its position where there is no room for all."""
    n = rows.sizes["token"]
    step = max(1, ceil(0.105 * n / axes_size(ax)[0]))
    texts, positions = rows["token_text"].values, rows["position"].values
    places = range(0, n, step)
    names = [token_label(str(texts[i])) if step == 1 else f"{positions[i]}  {token_label(str(texts[i]))}" for i in places]
    ax.set_xticks(places, names, rotation=90, fontfamily=families())
    thinned = f" ({'every other' if step == 2 else f'1 in {step}'} named, with its position)" if step > 1 else ""
    ax.set_xlabel(f"token read; its column is the policy of the next token{thinned}")


def mark_response(ax: Axes, response: np.ndarray) -> bool:
    """A line before the first row that predicts the response, and after the last; False where there are not both kinds."""
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
