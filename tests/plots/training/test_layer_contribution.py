from __future__ import annotations

import numpy as np
import pytest

import layerlens as ll
from layerlens import plots
from layerlens.errors import SelectionError
from tests.evaluate.test_contribution import seeds, trained_as
from tests.support.plots import caption_of, draw
from tests.support.synthetic_runs import make_run

RIGHT = {1: 2, 2: 4, 4: 6}


def found(full: int = 6):
    return ll.layer_contribution({"base": seeds(2), "all": seeds(full, full), **{layer: seeds(n, n) for layer, n in RIGHT.items()}})


def test_contributions_stand_above_the_curves_with_their_rank_correlations():
    run = make_run([0.4, 0.2, 0.1, -0.5])
    axes = plots.layer_contribution(found(), run)
    assert len(axes) == 3  # without js_to_final
    np.testing.assert_allclose(axes[0].lines[0].get_xdata(), [1, 2, 4])
    np.testing.assert_allclose(axes[0].lines[0].get_ydata(), found().table["contribution"])
    np.testing.assert_allclose(axes[2].lines[0].get_ydata(), run.mean("entropy_change")["mean"].sel(module="ffn"))
    assert [text.get_text()[:9] for text in axes[2].texts if text.get_text().startswith("ρ")] == ["ρ = -1.00"]
    assert "2 seed(s)" in caption_of(axes[0])
    assert "norm: none" in caption_of(axes[0])
    draw(axes[0])


def test_learning_rates_that_differ_stand_in_the_caption():
    alone = {layer: trained_as(seeds(n, n), str(layer), learning_rate=7e-4) for layer, n in RIGHT.items()}
    all_layers = trained_as(seeds(6, 6), "all", learning_rate=2e-4)
    [ax] = plots.layer_contribution(ll.layer_contribution({"base": seeds(2), "all": all_layers, **alone}))
    assert "learning rates: layers alone 0.0007, all layers 0.0002" in caption_of(ax)


def test_gains_are_drawn_if_all_layers_gain_nothing():
    [ax] = plots.layer_contribution(found(full=2))
    assert ax.get_ylabel() == "gain in accuracy [points]"
    assert "gains in place of C(k)" in caption_of(ax)
    with pytest.raises(SelectionError, match="the run has layers 1 to 2, and layer 4 was trained"):
        plots.layer_contribution(found(), make_run([0.1, -0.1]))
    sets = ll.layer_contribution({"base": seeds(2), "all": seeds(6), "1-2": seeds(4)})
    with pytest.raises(SelectionError, match="no single layer"):
        plots.layer_contribution(sets)
