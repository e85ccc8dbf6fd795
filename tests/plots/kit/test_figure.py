from __future__ import annotations

import gc
import weakref

import matplotlib as mpl
import matplotlib.pyplot as plt
import pytest
from matplotlib.figure import Figure

from layerlens import plots
from tests.support.plots import (
    figure_of,
    rise_and_fall,
)


@pytest.fixture(scope="module")
def run():
    return rise_and_fall(6, samples=3)


def one_of_each(run):
    yield plots.entropy_heatmap(run)
    yield plots.entropy_heatmap(run, 0)
    yield plots.family_grid([run, run])
    yield plots.entropy_flow(run)
    yield plots.entropy_change(run, layer=2)
    yield plots.similarity(run)
    yield plots.stream_cosine(run)
    yield plots.entropy_curves([run, run])
    yield plots.compare_families([run, run])
    yield plots.metric_by_layer(run, "perplexity")


def test_plots_leave_rcparams_and_pyplot_as_they_were(run):
    before = dict(mpl.rcParams)
    for drawn in one_of_each(run):
        assert isinstance(figure_of(drawn), Figure)
    assert dict(mpl.rcParams) == before
    assert plt.get_fignums() == []


def test_figures_are_freed_with_their_last_reference(run):
    ax = plots.entropy_change(run)
    gone = weakref.ref(figure_of(ax))
    del ax
    gc.collect()
    assert gone() is None


def test_new_figure_belongs_to_pyplot_when_interactive(run):
    with plt.ion():
        ax = plots.entropy_change(run)
    assert plt.fignum_exists(figure_of(ax).number)
    plt.close("all")
