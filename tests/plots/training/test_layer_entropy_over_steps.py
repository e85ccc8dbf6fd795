from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from matplotlib.figure import Figure

from layerlens import plots
from layerlens.plots.kit.cells import UNSURE
from tests.support.plots import (
    caption_of,
    cells,
    draw,
    numbers,
    phase_ends,
)


@pytest.mark.parametrize("which", ["log", "deep"])
def test_layer_entropy_is_layer_by_snapshot(which, request):
    log = request.getfixturevalue(which)
    ax = plots.layer_entropy_over_steps(log)
    expected = log.monitor[[f"entropy/layer_{number}" for number in range(1, log.n_layers + 1)]].to_numpy().T
    np.testing.assert_allclose(cells(ax), expected)
    assert ax.get_ylim() == (0.5, log.n_layers + 0.5)  # a layer lies at its number
    assert numbers(ax.yaxis)[0] == "1"
    assert numbers(ax.yaxis)[-1] == str(log.n_layers)
    assert numbers(ax.xaxis)[0] == "0"
    assert numbers(ax.xaxis)[-1] == str(log.monitor["step"].iloc[-1])
    draw(ax)


def test_layer_entropy_marks_the_phase_end_between_snapshots_and_outlines_the_trained_layer(log):
    ax = plots.layer_entropy_over_steps(log)
    assert phase_ends(ax) == [2.5]  # snapshots at 0, 5, 10 | 15, ...
    box = ax.patches[0].get_bbox()
    assert (box.x0, box.x1, box.y0, box.y1) == (0.5, 2.5, 3.5, 4.5)  # the snapshots at 5 and 10, not that before training
    assert "final policy" in [text.get_text() for text in ax.texts]


def test_layer_entropy_change_is_centred_at_zero(log):
    ax = plots.layer_entropy_over_steps(log, change=True)
    np.testing.assert_array_equal(cells(ax)[:, 0], 0)
    np.testing.assert_allclose(cells(ax)[3, -1], log.monitor["entropy/layer_4"].iloc[-1] - log.monitor["entropy/layer_4"].iloc[0])
    norm = ax.collections[0].norm
    assert norm.vmin == -norm.vmax
    assert ax.collections[0].get_cmap().name == "RdBu_r"


def test_layer_entropy_change_has_dots_if_its_paired_interval_contains_zero(log):
    change = {f"entropy/layer_{layer}/change{end}": value for layer in range(1, 13) for end, value in (("/low", 0.1), ("/high", 0.2))}
    monitor = log.monitor.assign(**change)
    monitor.loc[monitor.index[[0, 2]], "entropy/layer_5/change/low"] = -0.1
    ax = plots.layer_entropy_over_steps(replace(log, monitor=monitor), change=True)
    (dots,) = [item for item in ax.lines if item.get_gid() == UNSURE]
    assert (dots.get_xdata().tolist(), dots.get_ydata().tolist()) == ([2], [5]), "none in the first column, whose change is 0"
    assert "interval over paired problems contains 0" in caption_of(ax)
    without = log.monitor[[name for name in log.monitor if "/change" not in name]]
    old = plots.layer_entropy_over_steps(replace(log, monitor=without), change=True)
    assert "no interval" in caption_of(old)


def test_one_snapshot_and_given_axes(log):
    one = replace(log, monitor=log.monitor[:1], log=log.log[:1], internal=[(1, 1, 4)])
    draw(plots.layer_entropy_over_steps(one, change=True))
    draw(plots.refinement(one))
    figure = Figure(figsize=(6, 4), layout="constrained")
    ax = figure.subplots()
    assert plots.layer_entropy_over_steps(log, ax=ax) is ax
    draw(ax)
