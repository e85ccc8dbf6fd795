from __future__ import annotations

import numpy as np
import pytest

from layerlens import plots
from layerlens.errors import SelectionError
from tests.support.plots import (
    cells,
    draw,
    figure_of,
    numbers,
    part,
    rise_and_fall,
)


def test_family_grid_shares_colours_and_relative_depth(run):
    runs = [run, rise_and_fall(36, name="Llama"), rise_and_fall(20, name="$x$", start=9.0)]
    axes = plots.family_grid(runs)
    assert len(axes) == 3
    norms = [ax.collections[0].norm for ax in axes]
    assert norms[0] is norms[1] is norms[2]
    assert [ax.get_title(loc="left") for ax in axes] == ["Qwen3-0.6B\n12 layers", "Llama\n36 layers", "\\$x\\$\n20 layers"]
    assert all(ax.get_ylim() == (0, 1) for ax in axes)
    assert [cells(ax).shape for ax in axes] == [(12, 7), (36, 7), (20, 7)]
    assert len(figure_of(axes).axes) == 4  # one colour bar
    np.testing.assert_allclose(cells(axes[1]), runs[1].mean("entropy", resamples=1)["mean"].values)
    draw(axes)


def test_family_grid_aligns_different_sites_and_layers(run):
    some = part(run, layer=[2, 12], site=["ffn_out", "resid_post"])
    axes = plots.family_grid([some, rise_and_fall(8)], columns=1)
    assert numbers(axes[1].xaxis) == run.sites
    here = cells(axes[0])
    assert here.shape == (12, 7)
    assert np.isfinite(here).sum() == 4
    np.testing.assert_allclose(here[11, 6], some.mean("entropy", resamples=1)["mean"].sel(layer=12, site="resid_post"))
    with pytest.raises(SelectionError, match="no run has attn_in"):
        plots.family_grid([some], site="attn_in")
    with pytest.raises(SelectionError, match="no run"):
        plots.family_grid([])
