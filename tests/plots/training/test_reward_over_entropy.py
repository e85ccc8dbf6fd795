from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from layerlens import plots
from layerlens.errors import SelectionError
from layerlens.metrics.entropy_fit import reward_entropy_fit
from tests.support.plots import caption_of, draw


def test_entries_of_the_final_policy_are_drawn_with_the_fit(log):
    entries = log.log.copy()
    entries.loc[:9, "entropy"] = np.nan  # as the trainer leaves them in an internal phase
    ax = plots.reward_over_entropy(replace(log, log=entries))
    kept = entries.dropna(subset=["entropy"])
    np.testing.assert_allclose(ax.collections[0].get_offsets(), kept[["entropy", "reward"]].to_numpy())
    np.testing.assert_allclose(ax.collections[0].get_array(), kept["step"])
    a, b, _ = reward_entropy_fit(kept["entropy"].to_numpy(), kept["reward"].to_numpy())
    x, y = ax.lines[0].get_data()
    np.testing.assert_allclose(y, b - a * np.exp(x))
    assert "least squares" in caption_of(ax)
    draw(ax)
    with pytest.raises(SelectionError, match="2 entries with reward and entropy of the final policy; a fit needs 3"):
        plots.reward_over_entropy(replace(log, log=entries[:12]))
