from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from layerlens import plots
from layerlens.errors import SelectionError
from tests.support.plots import (
    caption_of,
    cells,
    draw,
    numbers,
)


def test_drift_leaves_open_the_weights_that_have_not_moved(log):
    ax = plots.drift(log)
    grid = cells(ax)
    assert grid.shape == (13, 8)  # the embedding under 12 layers; no column of the start
    np.testing.assert_allclose(grid[0], log.monitor["drift/embedding"][1:])
    assert np.isnan(grid[5:, :2]).all()  # layers 5 to 12 in the internal phase
    assert np.isfinite(grid[:5]).all()
    assert numbers(ax.yaxis)[:2] == ["embedding", "1"]
    assert "hatched: not moved at all" in caption_of(ax)
    draw(ax)
    early = replace(log, monitor=log.monitor[:1])
    with pytest.raises(SelectionError, match="nothing can have moved yet"):
        plots.drift(early)
