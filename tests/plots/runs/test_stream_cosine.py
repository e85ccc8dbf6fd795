from __future__ import annotations

import numpy as np
import pytest

from layerlens import plots
from layerlens.errors import SelectionError
from tests.support.plots import (
    caption_of,
    draw,
    line,
)


def test_stream_cosine_shows_quantiles_of_response_tokens(run):
    axes = plots.stream_cosine(run)
    assert len(axes) == 2
    response = run.data["stream_cosine"].values[run.data["in_response"].values.astype(bool)].astype(float)
    for number, ax in enumerate(axes):
        np.testing.assert_allclose(line(ax, "median token").get_ydata(), np.median(response[:, :, number], axis=0))
        outer = ax.collections[0].get_paths()[0].vertices[:, 1]
        np.testing.assert_allclose(outer.max(), np.quantile(response[:, :, number], 0.95, axis=0).max())
        assert {"▲ amplifies", "▼ erases", "writes new\ndirections"} == {text.get_text() for text in ax.texts}
    assert "bands and median" in caption_of(axes)
    draw(axes)
    (only,) = plots.stream_cosine(run, "ffn", drop_first=3)
    assert "cos(ffn_out, resid_mid)" in only.get_ylabel()
    assert f"bands and median: {len(response) - 3 * run.n_samples} response rows" in caption_of(np.array([only]))
    with pytest.raises(SelectionError, match="no stream_cosine of layer"):
        plots.stream_cosine(run, "layer")
