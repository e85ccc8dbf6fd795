from __future__ import annotations

import numpy as np

from layerlens import plots
from tests.support.plots import (
    caption_of,
    draw,
    line,
    rise_and_fall,
)


def test_models_of_different_depth_compare_on_relative_depth(run):
    deep = rise_and_fall(36, name="Llama", samples=5)
    for ax in (plots.entropy_curves([run, deep]), plots.metric_by_layer([run, deep], "agrees")):
        for model in (run, deep):
            np.testing.assert_allclose(line(ax, model.model).get_xdata(), np.arange(1, model.n_layers + 1) / model.n_layers)
        assert "relative depth" in ax.get_xlabel()
        assert "samples: 12 / 5" in caption_of(ax)
    axes = plots.compare_families([run, deep])
    np.testing.assert_allclose(line(axes[1], "Llama").get_ydata(), deep.mean("entropy_change")["mean"].sel(module="ffn"))
    draw(axes)
