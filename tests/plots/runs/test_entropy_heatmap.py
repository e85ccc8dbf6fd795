from __future__ import annotations

import matplotlib.pyplot as plt
import numpy as np
import pytest

from layerlens import plots
from layerlens.errors import SelectionError
from tests.support.plots import (
    caption_of,
    cells,
    draw,
    figure_of,
    numbers,
    part,
    with_values,
)


def test_entropy_heatmap_of_a_run_is_layer_by_site(run):
    ax = plots.entropy_heatmap(run)
    np.testing.assert_allclose(cells(ax), run.mean("entropy", resamples=1)["mean"].values)
    assert numbers(ax.xaxis) == run.sites
    assert [text.get_text() for text in ax.texts][:1] == [f"{cells(ax)[0, 0]:.1f}"]
    caption = caption_of(ax)
    assert caption == "Qwen3-0.6B · norm: none, logit lens · 12 samples · mean of per-sample means, response rows · no interval"
    assert cells(plots.entropy_heatmap(run, site="ffn_out")).shape == (12, 1)


def test_entropy_heatmap_averages_as_asked(run):
    ax = plots.entropy_heatmap(run, over="token", rows="all")
    np.testing.assert_allclose(cells(ax), run.mean("entropy", over="token", rows="all", resamples=1)["mean"].values)
    assert "mean over tokens, all rows" in caption_of(ax)
    assert "response rows, without each sample's first 2" in caption_of(plots.entropy_heatmap(run, drop_first=2))


@pytest.mark.parametrize("metric", ["entropy", "logp_next", "kl_to_final", "agrees", "entropy_change", "stream_cosine"])
def test_entropy_heatmap_of_other_metrics(run, metric):
    for sample in (None, 0):
        ax = plots.entropy_heatmap(run, sample, metric=metric)
        assert np.isfinite(cells(ax)).all()
        if metric in ("entropy_change", "stream_cosine"):
            norm = ax.collections[0].norm
            assert norm.vmin == -norm.vmax
    draw(ax)


def test_entropy_heatmap_of_norms_has_logarithmic_colours_and_no_formulas(run):
    ax = plots.entropy_heatmap(run, metric="state_norm")
    draw(ax)
    assert ax.collections[0].norm(1.0) <= 0
    assert not any("$" in label for label in numbers(figure_of(ax).axes[1].yaxis))


def test_entropy_heatmap_of_perplexity_shows_its_logarithm(run):
    ax = plots.entropy_heatmap(run, metric="perplexity")
    np.testing.assert_allclose(cells(ax), -run.mean("logp_next")["mean"].transpose("layer", "site"), rtol=1e-6)
    assert "nats per token" in figure_of(ax).axes[1].get_ylabel().replace("\n", " ")
    with pytest.raises(SelectionError, match="logp_next"):
        plots.entropy_heatmap(run, 0, metric="perplexity")


def test_color_bar_names_metric_and_unit(run):
    assert figure_of(plots.entropy_heatmap(run)).axes[1].get_ylabel().replace("\n", " ") == "mean entropy of the internal policy [nats]"


def test_entropy_heatmap_takes_limits(run):
    norm = plots.entropy_heatmap(run, limits=(0.0, 12.0)).collections[0].norm
    assert (norm.vmin, norm.vmax) == (0, 12)
    with pytest.raises(SelectionError, match="low under high"):
        plots.entropy_heatmap(run, limits=(3.0, 3.0))


def test_entropy_heatmap_hatches_missing_values(run):
    values = run.data["entropy"].values.copy()
    values[..., run.sites.index("resid_mid")] = np.nan
    ax = plots.entropy_heatmap(with_values(run, "entropy", values))
    assert np.isnan(cells(ax)[:, 3]).all()
    assert ax.patch.get_hatch()
    assert "hatched: no finite value" in caption_of(ax)
    tokens = plots.entropy_heatmap(with_values(run, "entropy", values), 0, site="resid_mid")
    assert "hatched: no finite value" in caption_of(tokens)
    draw(tokens)


def test_entropy_heatmap_of_some_layers_and_sites(run):
    some = part(run, layer=[2, 5, 12], site=["resid_post", "ffn_in"])
    ax = plots.entropy_heatmap(some)
    assert numbers(ax.yaxis) == ["2", "5", "12"]
    assert numbers(ax.xaxis) == ["resid_post", "ffn_in"]
    assert "layers 2, 5, 12 of 12" in caption_of(ax)
    assert numbers(plots.entropy_heatmap(some, 0).yaxis) == ["2", "5", "12"]


def test_entropy_heatmap_errors_name_what_the_run_holds(run):
    few = part(run, site=["resid_post"])
    with pytest.raises(SelectionError, match=r"no entropy at site 'ffn_in'.*resid_post"):
        plots.entropy_heatmap(few, 0, site="ffn_in")
    with pytest.raises(SelectionError, match="has no 'kl_from_layer'"):
        plots.entropy_heatmap(run, metric="kl_from_layer")
    with pytest.raises(SelectionError, match="unknown metric"):
        plots.entropy_heatmap(run, metric="surprise")
    with pytest.raises(SelectionError, match=r"plots\.similarity"):
        plots.entropy_heatmap(run, metric="similarity")
    with pytest.raises(SelectionError, match="no sample 99"):
        plots.entropy_heatmap(run, 99)
    with pytest.raises(SelectionError, match="add sample="):
        plots.entropy_heatmap(run, tokens=slice(3))
    with pytest.raises(SelectionError, match="leave out sample="):
        plots.entropy_heatmap(run, 0, over="token")


def test_entropy_heatmap_into_given_axes_puts_its_caption_below_them(run):
    figure, axs = plt.subplots(1, 2, layout="constrained", figsize=(10, 4))
    for ax, drawn in zip(axs, (plots.entropy_heatmap(run, ax=axs[0]), plots.entropy_heatmap(run, 0, ax=axs[1])), strict=True):
        assert drawn is ax
    figure.draw_without_rendering()
    for ax in axs:
        (caption,) = [child for child in ax.get_children() if child.get_gid() == "caption"]
        assert caption.get_window_extent().y1 <= ax.xaxis.label.get_window_extent().y0
        assert caption.get_window_extent().y0 >= 0
    plt.close(figure)
