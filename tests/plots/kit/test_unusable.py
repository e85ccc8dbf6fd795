from __future__ import annotations

import numpy as np
import pytest

from layerlens import plots
from layerlens.plots.kit.unusable import STRIP, UNUSABLE
from tests.support.plots import caption_of, draw, part, rise_and_fall, with_values
from tests.support.synthetic_runs import make_run


def marks(ax):
    """Ends of each mark along x, and its height as shares of the axes."""
    boxes = [patch.get_bbox() for patch in ax.patches if patch.get_label() == UNUSABLE]
    return [(box.x0, box.x1) for box in boxes], [(box.y0, box.y1) for box in boxes]


@pytest.fixture(scope="module")
def blind():
    """A run whose layers 1 to 5 of 12 are no better than guessing."""
    return make_run([0.3] * 12, usable_from=6, name="blind")


@pytest.mark.parametrize("plot", [plots.entropy_flow, plots.entropy_change, plots.metric_by_layer])
def test_layers_that_are_not_usable_are_hatched(plot, blind):
    ax = plot(blind)
    assert marks(ax) == ([(0.5, 5.5)], [(0.0, 1.0)])
    assert "hatched: layers not usable at resid_post (mean skill not above 0: no better than guessing)" in caption_of(ax)
    draw(ax)
    usable = plot(make_run([0.3] * 12))
    assert marks(usable) == ([], [])
    assert "usable" not in caption_of(usable)


def test_relative_depth_and_gaps(blind):
    ax = plots.entropy_curves(blind)
    assert marks(ax)[0] == [(0.0, pytest.approx(5 / 12))]
    logp = blind.data["logp_next"].values.copy()
    logp[:, 1] = -0.1
    holed = plots.metric_by_layer(with_values(blind, "logp_next", logp))
    assert marks(holed)[0] == [(0.5, 1.5), (2.5, 5.5)]
    some = plots.entropy_flow(part(blind, layer=[2, 4, 5, 8]))
    assert marks(some)[0] == [(1.5, 2.5), (3.5, 5.5)]


def test_several_runs_have_a_strip_each_in_the_colour_of_their_line(blind):
    ax = plots.entropy_curves([rise_and_fall(12), blind])
    assert marks(ax) == ([(0.0, pytest.approx(5 / 12))], [(STRIP, pytest.approx(1.8 * STRIP))])
    (strip,) = (patch for patch in ax.patches if patch.get_label() == UNUSABLE)
    line = next(line for line in ax.lines if line.get_label() == "blind")
    assert strip.get_edgecolor()[:3] == pytest.approx(plots_color(line.get_color()))
    assert "hatched strips in each line's colour" in caption_of(ax)
    axes = plots.compare_families([rise_and_fall(12), blind])
    assert len(marks(axes[0])[0]) == len(marks(axes[1])[0]) == 1
    draw(axes)


def plots_color(name):
    from matplotlib.colors import to_rgb

    return to_rgb(name)


def test_what_is_not_known_is_not_hatched(blind):
    for run in (
        make_run([0.3] * 12, usable_from=6, samples=1),  # no interval
        with_values(blind, "logp_next", np.full_like(blind.data["logp_next"].values, np.nan)),
        part(blind, site=["resid_pre", "ffn_in", "ffn_out"]),
    ):
        ax = plots.entropy_flow(run)
        assert marks(ax) == ([], [])
        assert "usable" not in caption_of(ax)


def test_only_curves_of_entropy_are_hatched(blind):
    assert marks(plots.metric_by_layer(blind, "agrees")) == ([], [])
    assert marks(plots.metric_by_layer(blind, "skill")) == ([], [])
