from __future__ import annotations

import pytest

from layerlens import plots
from layerlens.errors import SelectionError
from layerlens.results.training_log import open_training
from tests.support.plots import (
    curves,
)
from tests.support.training_folders import write_training


def test_stability_leaves_out_snapshots_without_a_value(log, tmp_path):
    axes = plots.stability([log])
    assert curves(axes[0])["bupo"].shape == (9, 2)
    assert curves(axes[1])["bupo"][:, 0].tolist() == [0, 10, 15, 20, 25, 30, 35, 40]
    alone = open_training(write_training(tmp_path / "out", repeats=1))
    with pytest.raises(SelectionError, match="monitor_repeats of 2 or more"):
        plots.stability(alone)
