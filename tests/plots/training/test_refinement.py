from __future__ import annotations

import numpy as np
import pytest

from layerlens import plots
from layerlens.errors import SelectionError
from layerlens.results.training_log import open_training
from tests.support.plots import (
    caption_of,
    cells,
    curves,
    draw,
    phase_ends,
)
from tests.support.training_folders import write_training


def test_refinement_shows_every_layer_above(log):
    axes = plots.refinement(log)
    assert axes.shape == (2, 2)
    for row, name in zip(axes, ("similarity", "kl"), strict=True):
        expected = log.monitor[[f"{name}/to_{number}" for number in range(5, 13)]].to_numpy().T
        np.testing.assert_allclose(cells(row[1]), expected)
        lines = curves(row[0])
        np.testing.assert_allclose(lines["mean of layers 5 to 12"][:, 1], expected.mean(axis=0))
        np.testing.assert_allclose(lines["layer 12, the last"][:, 1], expected[-1])
        assert phase_ends(row[0]) == [10.5]
        assert phase_ends(row[1]) == [2.5]
    assert "layer 4 against the layers above it" in caption_of(axes)
    draw(axes)


def test_refinement_needs_layers_above(baseline):
    with pytest.raises(SelectionError, match="it watched layer 12, which has none above"):
        plots.refinement(baseline)


def test_refinement_with_one_layer_above_needs_no_heat_map(tmp_path):
    log = open_training(write_training(tmp_path / "out", layer=11))
    axes = plots.refinement(log)
    assert axes.shape == (2, 1)
    np.testing.assert_allclose(curves(axes[0, 0])["layer 12"], log.monitor[["step", "similarity/to_12"]])
    assert "outlined" not in caption_of(axes)
    draw(axes)
