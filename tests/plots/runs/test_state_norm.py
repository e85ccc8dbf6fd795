from __future__ import annotations

import numpy as np
import pytest

from layerlens import plots
from layerlens.errors import SelectionError
from tests.support.plots import caption_of, draw, line, part, with_values


def test_state_norm_shows_tokens_and_position_0_apart(run):
    lengths, first = run.data["state_norm"].sel(site="resid_post").values.astype(float), run.data["position"].values == 0
    ax = plots.state_norm(run)
    response = run.row_mask("response") & ~first
    np.testing.assert_allclose(line(ax, "median token").get_ydata(), np.median(lengths[response], axis=0))
    np.testing.assert_allclose(line(ax, "longest state").get_ydata(), lengths[response].max(0))
    np.testing.assert_allclose(line(ax, "position 0").get_ydata(), np.median(lengths[first], axis=0))
    assert ax.get_yscale() == "log"
    assert f"{response.sum()} response rows of {run.n_samples} samples, without position 0" in caption_of(ax)
    draw(ax)
    whole = plots.state_norm(run, "ffn_out", rows="all")
    np.testing.assert_allclose(
        line(whole, "median token").get_ydata(), np.median(run.data["state_norm"].sel(site="ffn_out").values[~first].astype(float), axis=0)
    )


def test_state_norm_names_the_longest_state(run):
    values = run.data["state_norm"].values.copy()
    row = np.flatnonzero(run.row_mask("response"))[5]
    values[row, 3] *= 1000
    text = str(run.data["token_text"].values[row])
    caption = caption_of(plots.state_norm(with_values(run, "state_norm", values)))
    assert "times the median: token" in caption
    assert text.strip() in caption
    assert "layer 4" in caption


def test_state_norm_refuses_runs_without_it(run):
    with pytest.raises(SelectionError, match="no 'state_norm'"):
        plots.state_norm(type(run)(run.data.drop_vars("state_norm"), run.manifest))
    with pytest.raises(SelectionError, match="no site 'attn_in'"):
        plots.state_norm(part(run, site=["resid_post"]), "attn_in")
