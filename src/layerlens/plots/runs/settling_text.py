"""A response as text, every token coloured by the layer at which its prediction settles."""

from __future__ import annotations

import unicodedata
from itertools import pairwise
from math import floor
from typing import Any

import numpy as np
import xarray as xr
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.collections import PolyCollection
from matplotlib.colors import Normalize

from layerlens.errors import SelectionError
from layerlens.plots.kit.axes import set_title
from layerlens.plots.kit.caption import NO_INTERVAL, complete_axes, describe_runs
from layerlens.plots.kit.cells import color_bar
from layerlens.plots.kit.figure import axes_size, new_figure, run_layout
from layerlens.plots.kit.labels import families, plain
from layerlens.plots.kit.style import styled
from layerlens.results import Run
from layerlens.types import Rows

WIDTH_INCHES, LINE_INCHES = 7.0, 0.165
SIZE = 6.5
"""Points of the text; of a monospaced font a character is 0.602 as wide."""
CHARACTER_INCHES = 0.602 * SIZE / 72
SPACES = {"\n": "⏎", "\t": "⇥"}


@styled
def settling_text(run: Run, sample: int | str = 0, *, rows: Rows = "response", tokens: slice | None = None, ax: Axes | None = None) -> Axes:
    """The text of one sample, every token coloured by its settling depth, deep ones in bold and those of thinking underlined.

    A token has the colour of the row that predicts it: the first layer whose `resid_post` comes close to the final policy there
    (`js_to_final`). A token that settles at no layer is left white.

    Args:
        run: what to draw; it needs `js_to_final` of all layers.
        sample: a sample's number or id.
        rows: "response", or "all" to show the prompt too.
        tokens: which of these tokens to draw, as a list is sliced; all by default.
        ax: axes to draw into; a figure of fitting size by default. The lines share its height.

    Raises:
        SelectionError: the run was analysed without js_to_final or all layers, lacks the sample, or decoded only some of its rows.
    """
    of_sample = Run(run.sample(sample), run.manifest)
    data = of_sample.data
    depth, deep = of_sample.values("settling_depth"), of_sample.values("deep_thinking_ratio")
    shown = np.flatnonzero(of_sample.row_mask(rows) & (data["segment"].values != ""))
    if (np.diff(data["position"].values[shown]) != 1).any():
        raise SelectionError("the text of a sample needs every row of it; this run decoded some: analyse without tokens_per_sample")
    shown = shown[tokens or slice(None)]
    if not len(shown):
        raise SelectionError(f"tokens={tokens} leaves no token of the sample")
    texts = [_drawn(text) for text in _predicted_texts(data, shown)]
    target = ax or new_figure(WIDTH_INCHES, 1.2).subplots()
    target.set(xticks=[], yticks=[])
    run_layout(target)
    width = (axes_size(target)[0] if ax is not None else WIDTH_INCHES - 1.0) / CHARACTER_INCHES
    places = _places(texts, max(20, floor(width)))
    lines = places[-1][1] + 1
    if ax is None:
        target.get_figure(root=True).set_figheight(1.0 + LINE_INCHES * lines)  # type: ignore[union-attr]
    target.set(xlim=(0, max(20, floor(width))), ylim=(lines, 0))
    target.spines[:].set_visible(False)
    cells = _draw_tokens(target, run.n_layers, texts, places, depth.values[shown], deep.values[shown], data["segment"].values[shown])
    color_bar(target, cells, depth.values[shown], "settling depth [layer]")
    name = str(data["sample_id"].values[0])
    run_layout(target)
    set_title(target, f"{run.model} · sample {name}")
    share = float(deep.values[shown].mean())
    shows = [
        f"one sample ({plain(name)}, {len(shown)} tokens): no mean, {NO_INTERVAL}",
        f"colour: first layer whose resid_post comes within {depth.attrs['threshold']:g} bits of the final policy that predicts the token",
        f"bold: deep, from l / L = {deep.attrs['share']:g} on ({share:.0%} of the tokens)",
        "underlined: thinking" if (data["segment"].values[shown] == "thinking").any() else "",
        "white: settles nowhere" if np.isnan(depth.values[shown]).any() else "",
    ]
    complete_axes(target, describe_runs(run, shows=shows), given=ax)
    return target


def _predicted_texts(data: xr.Dataset, shown: np.ndarray) -> list[str]:
    """The text of the token that each row predicts: that of the next row, or for the last one what the response ends with."""
    texts = [str(text) for text in data["token_text"].values]
    following = dict(zip(data["position"].values.tolist(), texts, strict=True))
    positions = data["position"].values[shown] + 1
    known = [following.get(int(position)) for position in positions]
    if known[-1] is None:  # a run of response rows holds no row of the last token
        before = "".join(text for text, kind in zip(texts[1:], data["segment"].values[1:], strict=True) if kind != "prompt")
        whole = str(data["response_text"].values[0]) if "response_text" in data.coords else ""
        known[-1] = whole.removeprefix(before) if before and whole.startswith(before) else "…"
    return [text or "" for text in known]


def _drawn(text: str) -> str:
    """A token's text as it is drawn: line breaks and tabs by their signs."""
    return "".join(SPACES.get(char, char if char == " " else plain(char)) for char in text) or "∅"


def _columns(text: str) -> int:
    return sum(2 if unicodedata.east_asian_width(char) in "WF" else 1 for char in text.replace(r"\$", "$"))


def _places(texts: list[str], width: int) -> list[tuple[int, int]]:
    """The first column and the line of each token; a token that ends with a line break ends its line."""
    places, column, line = [], 0, 0
    for text in texts:
        if column and column + _columns(text) > width:
            column, line = 0, line + 1
        places.append((column, line))
        column += _columns(text)
        if text.endswith("⏎"):
            column, line = 0, line + 1
    return places


def _draw_tokens(
    ax: Axes,
    n_layers: int,
    texts: list[str],
    places: list[tuple[int, int]],
    depth: np.ndarray,
    deep: np.ndarray,
    segments: np.ndarray,
) -> PolyCollection:
    """A coloured box for each token, and its text in it."""
    boxes = [
        [(column + dx * _columns(text), line + dy) for dx, dy in ((0, 0.06), (1, 0.06), (1, 0.94), (0, 0.94))]
        for text, (column, line) in zip(texts, places, strict=True)
    ]
    cells = PolyCollection(
        boxes,
        array=np.ma.masked_invalid(depth),
        cmap=colormaps["viridis"].with_extremes(bad="white"),
        norm=Normalize(1, n_layers),
        edgecolor="white",
        linewidth=0.3,
    )
    ax.add_collection(cells)
    font: dict[str, Any] = {"fontsize": SIZE, "family": ["DejaVu Sans Mono", *families()], "va": "center", "ha": "left", "in_layout": False}
    for text, (column, line), value, is_deep in zip(texts, places, depth, deep, strict=True):
        red, green, blue, _ = cells.cmap(cells.norm(value)) if np.isfinite(value) else (1, 1, 1, 1)
        light = 0.299 * red + 0.587 * green + 0.114 * blue > 0.5
        ax.text(column, line + 0.5, text, color="black" if light else "white", weight="bold" if is_deep else "normal", **font)
    thinking = [[(a, line + 0.94), (b, line + 0.94)] for a, b, line in _stretches(texts, places, segments == "thinking")]
    for (a, y), (b, _) in thinking:
        ax.plot([a, b], [y, y], color="black", linewidth=0.8, solid_capstyle="butt")
    return cells


def _stretches(texts: list[str], places: list[tuple[int, int]], chosen: np.ndarray) -> list[tuple[int, int, int]]:
    """First column, last column and line of each unbroken run of chosen tokens."""
    edges = [
        0,
        *(i for i, (a, b) in enumerate(pairwise(zip(places, chosen, strict=True)), 1) if a[0][1] != b[0][1] or a[1] != b[1]),
        len(texts),
    ]
    return [
        (places[first][0], places[last - 1][0] + _columns(texts[last - 1]), places[first][1])
        for first, last in pairwise(edges)
        if chosen[first]
    ]
