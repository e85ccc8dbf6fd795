"""What every figure of runs has to do, whichever it is."""

from __future__ import annotations

from itertools import pairwise

import matplotlib.pyplot as plt
import pytest

from layerlens import plots
from tests.support.plots import (
    caption_of,
    draw,
    rise_and_fall,
)


def test_figures_of_one_sample_draw_no_band_and_say_so(single):
    drawings = [
        plots.entropy_change(single, ["ffn", "attn"]),
        plots.entropy_flow(single),
        plots.metric_by_layer(single, "agrees"),
        plots.stream_cosine(single),
        plots.compare_families([single, single]),
    ]
    for drawn in drawings:
        assert "1 sample: no interval" in caption_of(drawn)
        draw(drawn)
    assert not drawings[0].collections


@pytest.mark.parametrize(("n_layers", "size"), [(1, (9, 6)), (12, (3.2, 2.6)), (36, (3.2, 2.6)), (36, (9, 6))])
def test_figures_fit_axes_of_any_size(n_layers, size):
    run = rise_and_fall(n_layers, samples=3)
    for plot in (plots.entropy_flow, plots.entropy_change, plots.similarity, plots.entropy_heatmap):
        figure, ax = plt.subplots(figsize=size, layout="constrained")
        assert plot(run, ax=ax) is ax
        figure.draw_without_rendering()
        labels = [label.get_window_extent() for label in ax.get_xticklabels() if label.get_text() and label.get_rotation() == 0]
        assert all(a.x1 < b.x0 for a, b in pairwise(labels)), plot.__name__
        plt.close(figure)
