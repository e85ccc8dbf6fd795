"""Runs to draw, and what to read off a drawing."""

from __future__ import annotations

from typing import Any

import numpy as np
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from layerlens.plots.kit.caption import CAPTION
from layerlens.plots.kit.steps import PHASE_END
from layerlens.results import Run
from tests.support.synthetic_runs import make_run

PHASES = {"exploration": (1, 3), "integration": (4, 9), "convergence": (10, 12)}


def rise_and_fall(n_layers: int, **kwargs: Any) -> Run:
    """A run whose FFN explores in its lower quarter, and commits in its upper one."""
    depth = np.arange(1, n_layers + 1) / n_layers
    return make_run(np.where(depth <= 0.25, 0.5, np.where(depth <= 0.75, 0.0, -0.4)), attn_change=0.05 * np.cos(4 * depth), **kwargs)


def part(run: Run, **chosen: Any) -> Run:
    """The run as if only these layers and sites had been analysed."""
    data = run.data.sel({name: chosen[name] for name in chosen})
    return Run(data.sel(layer_to=chosen["layer"]) if "layer" in chosen else data, run.manifest)


def with_values(run: Run, name: str, values: np.ndarray) -> Run:
    return Run(run.data.assign({name: (run.data[name].dims, values, run.data[name].attrs)}), run.manifest)


def with_tokens(run: Run, texts: list[str]) -> Run:
    """The run with other token texts, repeated as often as needed."""
    n = run.data.sizes["token"]
    repeated = np.array([texts[i % len(texts)] for i in range(n)], dtype=object)
    return Run(run.data.assign_coords(token_text=("token", repeated)), run.manifest)


def figure_of(drawn: Axes | np.ndarray) -> Figure:
    figure = (drawn if isinstance(drawn, Axes) else drawn.flat[0]).get_figure(root=True)
    assert figure is not None
    return figure


def draw(drawn: Axes | np.ndarray) -> None:
    """Renders all of it, so that a warning of layout or glyphs becomes an error."""
    figure_of(drawn).savefig("/dev/null", format="png", dpi=40)


def caption_of(drawn: Axes | np.ndarray) -> str:
    """The caption on one line."""

    def is_caption(artist: Artist) -> bool:
        return artist.get_gid() == CAPTION

    (caption,) = figure_of(drawn).findobj(is_caption)
    return " ".join(caption.get_text().replace("\u00a0", " ").split())  # type: ignore[attr-defined]


def numbers(axis: Any) -> list[str]:
    return [label.get_text() for label in axis.get_ticklabels()]


def cells(ax: Axes) -> np.ndarray:
    """What a heat map holds, layer × column."""
    return np.ma.filled(ax.collections[0].get_array().astype(float), np.nan)  # type: ignore[union-attr]


def line(ax: Axes, label: str) -> Line2D:
    """The one line with this label."""
    (found,) = [item for item in ax.lines if item.get_label() == label]
    return found


def curves(ax: Axes) -> dict[str, np.ndarray]:
    """The points of each line that holds data over optimizer steps, without those as logged, by label."""
    return {str(item.get_label()): np.column_stack(item.get_data()) for item in ax.lines if not str(item.get_label()).startswith("_")}


def phase_ends(ax: Axes) -> list[float]:
    """Where the ends of internal phases are marked."""
    return [float(item.get_xdata()[0]) for item in ax.lines if item.get_gid() == PHASE_END]  # type: ignore[index]
