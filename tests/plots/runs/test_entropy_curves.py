from __future__ import annotations

import numpy as np
import pytest

from layerlens import plots
from layerlens.errors import SelectionError
from tests.support.plots import (
    caption_of,
    rise_and_fall,
)


def test_entropy_curves_tell_runs_of_one_model_apart(run):
    ax = plots.entropy_curves([run, rise_and_fall(12, name="Qwen3-0.6B", norm="final")])
    assert [text.get_text() for text in ax.get_legend().get_texts()] == ["Qwen3-0.6B (norm: none)", "Qwen3-0.6B (norm: final)"]
    assert "norm: none / final" in caption_of(ax)
    assert len({text.get_text() for text in plots.entropy_curves([run, run]).get_legend().get_texts()}) == 2


def test_entropy_curves_as_share_of_their_maximum(run):
    ax = plots.entropy_curves(run, scale="share")
    np.testing.assert_allclose(max(ax.lines[0].get_ydata()), 1.0)
    with pytest.raises(SelectionError, match="scale must be"):
        plots.entropy_curves(run, scale="bits")
