from __future__ import annotations

import numpy as np
import pytest

from layerlens import plots
from layerlens.errors import SelectionError
from tests.support.plots import (
    caption_of,
    draw,
    line,
    numbers,
    part,
    with_values,
)


def test_entropy_flow_follows_the_stream_through_every_block(run):
    ax = plots.entropy_flow(run)
    mean = run.mean("entropy", resamples=1)["mean"]
    stream = line(ax, "residual stream")
    np.testing.assert_allclose(stream.get_xdata(), np.arange(0.5, 12.6, 0.5))
    y = stream.get_ydata()
    np.testing.assert_allclose(y[0], mean.sel(layer=1, site="resid_pre"))
    np.testing.assert_allclose(y[1::2], mean.sel(site="resid_mid"))
    np.testing.assert_allclose(y[2::2], mean.sel(site="resid_post"))
    assert numbers(ax.xaxis)[0] == "1"
    assert "95% bootstrap interval over samples" in caption_of(ax)
    draw(ax)


def test_entropy_flow_has_an_arrow_per_module_and_layer(run):
    ax = plots.entropy_flow(run)
    mean = run.mean("entropy", resamples=1)["mean"]
    tips = [(x, y) for item in ax.lines if item.get_marker() in ("^", "v") for x, y in zip(item.get_xdata(), item.get_ydata(), strict=True)]
    assert len(tips) == 2 * 12
    heights = dict(tips)
    for layer in run.layers:
        np.testing.assert_allclose(heights[layer - 0.25], mean.sel(layer=layer, site="attn_out"))
        np.testing.assert_allclose(heights[layer + 0.25], mean.sel(layer=layer, site="ffn_out"))
    assert [text.get_text() for text in ax.get_legend().get_texts()] == ["residual stream", "attention: in → out", "FFN: in → out"]


def test_entropy_flow_draws_the_sites_and_layers_that_a_run_has(run):
    some = part(run, layer=[1, 2, 6, 12], site=["resid_post", "ffn_in", "ffn_out"])
    ax = plots.entropy_flow(some)
    stream = line(ax, "residual stream").get_xdata()
    assert np.isnan(stream).sum() == 2  # no line where layers were not analysed
    np.testing.assert_allclose(stream[np.isfinite(stream)], [1.5, 2.5, 6.5, 12.5])
    assert len(ax.get_legend().get_texts()) == 2
    draw(ax)
    draw(plots.entropy_flow(part(run, layer=[3])))
    draw(plots.entropy_flow(part(run, site=["attn_in", "attn_out"])))
    with pytest.raises(SelectionError, match="has only ffn_out"):
        plots.entropy_flow(part(run, site=["ffn_out"]))


def test_entropy_flow_of_a_parallel_model_skips_the_state_it_lacks(run):
    values = run.data["entropy"].values.copy()
    values[..., run.sites.index("resid_mid")] = np.nan
    stream = line(plots.entropy_flow(with_values(run, "entropy", values)), "residual stream")
    np.testing.assert_allclose(stream.get_xdata(), np.arange(0.5, 12.6, 1.0))
