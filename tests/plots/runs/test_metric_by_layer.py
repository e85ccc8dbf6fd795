from __future__ import annotations

import numpy as np
import pytest

from layerlens import plots
from layerlens.errors import SelectionError
from tests.support.plots import (
    draw,
    numbers,
    rise_and_fall,
)


def test_metric_by_layer_tells_lines_apart_by_more_than_colour():
    runs = [rise_and_fall(4, name=f"model {number}", samples=2) for number in range(9)]
    ax = plots.metric_by_layer(runs, "entropy")
    styles = {(item.get_marker(), item.get_linestyle()) for item in ax.lines}
    assert len(styles) == 9
    draw(ax)


def test_metric_by_layer_of_equal_depth_counts_layers_from_1(run):
    ax = plots.metric_by_layer([run, rise_and_fall(12, name="other")], "kl_to_final")
    assert numbers(ax.xaxis)[0] == "1"
    assert ax.get_xlabel() == "layer"
    assert ax.get_ylim()[0] == 0


@pytest.mark.parametrize("metric", ["entropy", "agrees", "kl_to_final", "logp_next"])
def test_metric_by_layer_of_any_metric(run, metric):
    ax = plots.metric_by_layer(run, metric, site="ffn_out")
    np.testing.assert_allclose(ax.lines[0].get_ydata(), run.mean(metric)["mean"].sel(site="ffn_out"))
    assert ax.get_yscale() == "linear"
    draw(ax)


def test_perplexity_is_drawn_in_nats_per_token(run):
    """States that are read without a norm have perplexities up to 10^150."""
    ax = plots.metric_by_layer(run, "perplexity", over="token")
    np.testing.assert_allclose(ax.lines[0].get_ydata(), -run.mean("logp_next", over="token")["mean"].sel(site="resid_post"))
    assert "log perplexity of the next token [nats per token]" in ax.get_ylabel().replace("\n", " ")


def test_metric_by_layer_of_norms_has_a_logarithmic_axis_without_formulas(run):
    ax = plots.metric_by_layer(run, "state_norm")
    assert ax.get_yscale() == "log"
    draw(ax)
    assert not any("$" in label for label in numbers(ax.yaxis))


def test_metric_by_layer_of_modules(run):
    np.testing.assert_allclose(
        plots.metric_by_layer(run, "entropy_change", "attn").lines[0].get_ydata(), run.mean("entropy_change")["mean"].sel(module="attn")
    )
    with pytest.raises(SelectionError, match=r"no site 'ffn'.*resid_pre"):
        plots.metric_by_layer(run, "entropy", "ffn")
