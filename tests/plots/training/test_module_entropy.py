from __future__ import annotations

import numpy as np
import pytest

from layerlens import plots
from tests.support.plots import (
    caption_of,
    cells,
    curves,
    draw,
)


@pytest.mark.parametrize("which", ["log", "baseline", "deep"])
def test_module_entropy_draws_both_modules_over_training(which, request):
    log = request.getfixturevalue(which)
    axes = plots.module_entropy(log)
    for (left, middle, right), module in zip(axes, ("attn", "ffn"), strict=True):
        (line,) = [line for name, line in curves(left).items() if name.endswith(f"layer {log.watched}")]
        np.testing.assert_allclose(line, log.monitor[["step", f"entropy_change/{module}_{log.watched}"]])
        assert len(left.collections) == 1, "its interval"
        for ax, name in ((middle, "entropy"), (right, "entropy_change")):
            expected = log.monitor[[f"{name}/{module}_{number}" for number in range(1, log.n_layers + 1)]].to_numpy().T
            np.testing.assert_allclose(cells(ax), expected)
        assert right.collections[0].norm.vmin == -right.collections[0].norm.vmax
    assert "bands: 95% bootstrap interval over problems" in caption_of(axes)
    draw(axes)
