"""Figures of runs, evaluations and training runs. A plot returns the Axes it drew into. It computes nothing: its numbers
come from `metrics` and `results`.

A plot of one drawing returns its Axes: those given as `ax=`, else those of a new figure (`ax.figure`). A plot of several drawings
(`family_grid`, `compare_families`, `stream_cosine`, `training_dynamics`, ...) makes its own figure and returns an array of Axes.

Figures made in a script or a test are unknown to pyplot: they open no window, and are freed with their last reference. In
a notebook, or after `plt.ion()`, pyplot shows and closes them. To get a window from a script, pass axes of `plt.subplots()`.
`save` writes any figure to PNG, SVG or PDF, and `data` gives its numbers as a table.

Keyword arguments of a plot of runs that it does not list go to `Run.mean`: `over`, `rows`, `segment`, `drop_first`, `level`,
`resamples`, `seed`. The line under every figure says which model, norm, samples, mean and interval it shows.

Each function lies in the file of its name, in `plots.runs` or `plots.training`; what the functions share is in `plots.kit`.
"""

from __future__ import annotations

from layerlens.plots.kit.drawn_data import data
from layerlens.plots.kit.save import save
from layerlens.plots.runs.compare_families import compare_families
from layerlens.plots.runs.convergence import convergence
from layerlens.plots.runs.deep_thinking import deep_thinking
from layerlens.plots.runs.difference_heatmap import difference_heatmap
from layerlens.plots.runs.entropy_change import entropy_change
from layerlens.plots.runs.entropy_curves import entropy_curves
from layerlens.plots.runs.entropy_flow import entropy_flow
from layerlens.plots.runs.entropy_heatmap import entropy_heatmap
from layerlens.plots.runs.family_grid import family_grid
from layerlens.plots.runs.metric_by_layer import metric_by_layer
from layerlens.plots.runs.pass_curves import pass_curves
from layerlens.plots.runs.scale_shape import scale_shape
from layerlens.plots.runs.settling_depths import settling_depths
from layerlens.plots.runs.settling_text import settling_text
from layerlens.plots.runs.similarity import similarity
from layerlens.plots.runs.state_norm import state_norm
from layerlens.plots.runs.stream_cosine import stream_cosine
from layerlens.plots.training.drift import drift
from layerlens.plots.training.layer_contribution import layer_contribution
from layerlens.plots.training.layer_entropy_over_steps import layer_entropy_over_steps
from layerlens.plots.training.module_entropy import module_entropy
from layerlens.plots.training.refinement import refinement
from layerlens.plots.training.reward_over_entropy import reward_over_entropy
from layerlens.plots.training.stability import stability
from layerlens.plots.training.training_dynamics import training_dynamics

__all__ = [
    "compare_families",
    "convergence",
    "data",
    "deep_thinking",
    "difference_heatmap",
    "drift",
    "entropy_change",
    "entropy_curves",
    "entropy_flow",
    "entropy_heatmap",
    "family_grid",
    "layer_contribution",
    "layer_entropy_over_steps",
    "metric_by_layer",
    "module_entropy",
    "pass_curves",
    "refinement",
    "reward_over_entropy",
    "save",
    "scale_shape",
    "settling_depths",
    "settling_text",
    "similarity",
    "stability",
    "state_norm",
    "stream_cosine",
    "training_dynamics",
]
