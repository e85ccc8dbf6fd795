from __future__ import annotations

import numpy as np
import pytest

from layerlens import plots
from layerlens.errors import SelectionError
from layerlens.results import Run
from tests.support.plots import (
    cells,
    draw,
    figure_of,
    numbers,
    part,
    with_values,
)


def test_similarity_holds_the_mean_matrix(run):
    for kind, name in (("cosine", "similarity"), ("cka", "cka")):
        ax = plots.similarity(run, kind)
        np.testing.assert_allclose(cells(ax), run.mean(name, resamples=1)["mean"].values)
        assert ax.collections[0].norm.vmax == 1
        assert figure_of(ax).axes[1]._colorbar.extend == "neither"
        assert numbers(ax.xaxis)[0] == "1"
        draw(ax)
    with pytest.raises(SelectionError, match="unknown kind"):
        plots.similarity(run, "euclid")
    with pytest.raises(SelectionError, match="has no 'cka'"):
        plots.similarity(Run(run.data.drop_vars("cka"), run.manifest), "cka")
    draw(plots.similarity(part(run, layer=[4])))


def test_color_bar_is_not_pointed_by_a_rounding_error(run):
    ax = plots.similarity(with_values(run, "similarity", run.data["similarity"].values * np.float32(1.0000002)))
    assert figure_of(ax).axes[1]._colorbar.extend == "neither"


def test_similarity_below_zero_diverges_from_zero(run):
    values = run.data["similarity"].values * 2 - 1
    norm = plots.similarity(with_values(run, "similarity", values)).collections[0].norm
    assert (norm.vmin, norm.vmax) == (-1, 1)
