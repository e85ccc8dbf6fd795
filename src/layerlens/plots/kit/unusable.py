"""Marks on curves of entropy: the layers whose policy is no better than guessing."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import numpy as np
from matplotlib.axes import Axes
from matplotlib.transforms import blended_transform_factory

from layerlens.metrics.skill import is_usable
from layerlens.plots.kit.run_data import MeanOptions
from layerlens.plots.kit.style import line_style
from layerlens.results import Run

UNUSABLE = "_unusable"
"""The label of a mark, to find it by."""
STRIP = 0.025
"""Height of one run's strip, as a share of the axes."""


def hatch_unusable(ax: Axes, runs: Sequence[Run], site: str, relative: bool, options: MeanOptions) -> str:
    """Hatches the layers that are not usable at `site`: the ground of one run, or a strip at the bottom for each of several.

    A layer is usable if the lower end of the interval of its mean skill is above 0 (docs/definitions.md, "Usable layers"). Layers
    of a run whose skill is not known, or has no interval, are not marked. Returns what a caption must say, or nothing.
    """
    marked = False
    for number, run in enumerate(runs):
        layers = _unusable(run, site, options)
        marked |= bool(layers)
        scale = run.n_layers if relative else 1
        for first, last in _spans(layers):
            left, right = ((first - 1) / scale, last / scale) if relative else (first - 0.5, last + 0.5)
            ends = (0.0, 1.0) if len(runs) == 1 else (number * STRIP, (number + 0.8) * STRIP)
            color = "0.82" if len(runs) == 1 else line_style(number).color
            ax.axvspan(
                left, right, *ends, facecolor="none", edgecolor=color, hatch="////", linewidth=0, zorder=-1.5, label=UNUSABLE,
                transform=blended_transform_factory(ax.transData, ax.transAxes),
            )  # fmt: skip
    if not marked:
        return ""
    what = "hatched" if len(runs) == 1 else "hatched strips in each line's colour"
    return f"{what}: layers not usable at {site} (mean skill not above 0: no better than guessing)"


def _unusable(run: Run, site: str, options: MeanOptions) -> list[int]:
    if "logp_next" not in run.variables or site not in run.sites or run.manifest.model.vocabulary is None:
        return []
    low = run.mean("skill", **options)["low"].sel(site=site).values
    return [layer for layer, usable, known in zip(run.layers, is_usable(low), np.isfinite(low), strict=True) if known and not usable]


def _spans(layers: Sequence[int]) -> list[tuple[int, int]]:
    """First and last of each run of neighbouring layers."""
    cuts = [0, *(place + 1 for place, (a, b) in enumerate(pairwise(layers)) if b > a + 1), len(layers)]
    return [(layers[first], layers[last - 1]) for first, last in pairwise(cuts)] if layers else []
