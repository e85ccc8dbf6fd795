"""Figures of Runs. A plot takes a Run and returns the Axes it drew into; it computes nothing that a Run does not hold.

One drawing: `ax=` draws into axes of yours, else a figure is made, and the Axes come back (`ax.figure` is the figure).
Several (`family_grid`, `compare_families`, `stream_cosine`): their own figure, and an array of its Axes comes back.

Figures made in a script or a test are unknown to pyplot: they open no window, and are gone when the last reference is. In
a notebook, or after `plt.ion()`, pyplot shows and closes them. To get a window from a script, pass axes of `plt.subplots()`.
`save` writes any of them to PNG, SVG or PDF.

Keyword arguments not listed by a plot go to `Run.mean`: `over`, `rows`, `drop_first`, `level`, `resamples`, `seed`. The line
under every figure says which model, norm, samples, mean and interval it shows.
"""

from __future__ import annotations

from layerlens.plots.canvas import save
from layerlens.plots.changes import entropy_change
from layerlens.plots.cosines import stream_cosine
from layerlens.plots.curves import compare_families, entropy_curves, metric_by_layer
from layerlens.plots.differences import difference_heatmap
from layerlens.plots.dynamics import drift, layer_entropy_over_steps, stability, training_dynamics
from layerlens.plots.flow import entropy_flow
from layerlens.plots.grid import family_grid
from layerlens.plots.heatmaps import entropy_heatmap
from layerlens.plots.matrices import similarity
from layerlens.plots.passes import pass_curves
from layerlens.plots.trained import module_entropy, refinement

__all__ = [
    "compare_families",
    "difference_heatmap",
    "drift",
    "entropy_change",
    "entropy_curves",
    "entropy_flow",
    "entropy_heatmap",
    "family_grid",
    "layer_entropy_over_steps",
    "metric_by_layer",
    "module_entropy",
    "pass_curves",
    "refinement",
    "save",
    "similarity",
    "stability",
    "stream_cosine",
    "training_dynamics",
]
