from __future__ import annotations

from itertools import pairwise

import matplotlib.pyplot as plt
import numpy as np
import pytest
from matplotlib.colors import to_rgba

from layerlens import plots
from layerlens.errors import SelectionError
from tests.support.plots import caption_of, cells, draw, figure_of, numbers, part, rise_and_fall, with_tokens, with_values

ODD_TOKENS = [
    " sum", "\n", "$x^2$", "\\$", "你好", "😀", "\x00", "", "\u0301", "\u200d", "مرحبا", "<|im_end|>", "_^{", "\t\t\t\t\t", "\ue000",
]  # fmt: skip


@pytest.fixture(scope="module")
def run():
    return rise_and_fall(12, name="Qwen3-0.6B")


def test_a_samples_heat_map_holds_its_entropies_layer_by_token(run):
    ax = plots.entropy_heatmap(run, "s2", site="ffn_out")
    rows = run.sample("s2")
    np.testing.assert_allclose(cells(ax), rows["entropy"].sel(site="ffn_out").values.T)
    assert numbers(ax.yaxis) == [str(layer) for layer in range(1, 13)]
    assert ax.get_ylabel() == "layer"
    assert ax.get_ylim() == (-0.5, 11.5)
    draw(ax)


def test_sample_by_number_is_sample_by_id(run):
    np.testing.assert_array_equal(cells(plots.entropy_heatmap(run, 3)), cells(plots.entropy_heatmap(run, "s3")))


def test_blanks_show_in_token_labels(run):
    labels = numbers(plots.entropy_heatmap(with_tokens(run, [" a", "\n", "b c", "$y$", "\t"]), 0).xaxis)
    assert labels[:5] == ["␣a", "⏎", "b␣c", r"\$y\$", "⇥"]


def test_prompt_and_response_are_told_apart(run):
    ax = plots.entropy_heatmap(run, 0)
    first = int(run.sample(0)["in_response"].values.argmax())
    edges = {line.get_xdata()[0] for line in ax.lines}
    assert edges == {first - 0.5}
    assert any("predicts response" in text.get_text() for text in ax.texts)
    assert not plots.entropy_heatmap(run, 0, tokens=slice(first, first + 5)).lines


def test_a_token_window(run):
    ax = plots.entropy_heatmap(run, 1, tokens=slice(5, 9))
    np.testing.assert_allclose(cells(ax), run.sample(1)["entropy"].sel(site="resid_post").values[5:9].T)
    assert len(numbers(ax.xaxis)) == 4
    assert "4 of 21 tokens" in caption_of(ax)
    with pytest.raises(SelectionError, match="leaves none of the sample's 21 tokens"):
        plots.entropy_heatmap(run, 1, tokens=slice(50, 60))


def test_labels_of_many_tokens_are_thinned_until_they_do_not_overlap():
    ax = plots.entropy_heatmap(rise_and_fall(36, samples=1, tokens=600), 0)
    draw(ax)
    labels = [label for label in ax.get_xticklabels() if label.get_text()]
    assert 20 < len(labels) < 150
    assert labels[1].get_text().split("  ")[0] == str(int(ax.get_xticks()[1]))  # named with its position
    boxes = sorted((label.get_window_extent() for label in labels), key=lambda box: box.x0)
    assert all(a.x1 <= b.x0 for a, b in pairwise(boxes))
    assert ax.collections[0].get_rasterized()


def test_any_text_is_drawn_without_a_warning(run):
    ax = plots.entropy_heatmap(with_tokens(run, ODD_TOKENS), 0)
    draw(ax)
    labels = numbers(ax.xaxis)
    assert r"\$x^2\$" in labels
    assert r"\x00" in labels
    assert "∅" in labels


def test_the_whole_run_is_layer_by_site(run):
    ax = plots.entropy_heatmap(run)
    np.testing.assert_allclose(cells(ax), run.mean("entropy", resamples=1)["mean"].values)
    assert numbers(ax.xaxis) == run.sites
    assert [text.get_text() for text in ax.texts][:1] == [f"{cells(ax)[0, 0]:.1f}"]
    caption = caption_of(ax)
    assert caption == "Qwen3-0.6B · norm: none · 12 samples · mean of per-sample means, response rows"
    assert cells(plots.entropy_heatmap(run, site="ffn_out")).shape == (12, 1)


def test_means_follow_the_callers_convention(run):
    ax = plots.entropy_heatmap(run, over="token", rows="all")
    np.testing.assert_allclose(cells(ax), run.mean("entropy", over="token", rows="all", resamples=1)["mean"].values)
    assert "mean over tokens, all rows" in caption_of(ax)
    assert "response rows, without each sample's first 2" in caption_of(plots.entropy_heatmap(run, drop_first=2))


@pytest.mark.parametrize("metric", ["entropy", "logp_next", "kl_to_final", "agrees", "entropy_change", "stream_cosine"])
def test_other_metrics(run, metric):
    for sample in (None, 0):
        ax = plots.entropy_heatmap(run, sample, metric=metric)
        assert np.isfinite(cells(ax)).all()
        if metric in ("entropy_change", "stream_cosine"):
            norm = ax.collections[0].norm
            assert norm.vmin == -norm.vmax
    draw(ax)


def test_agreement_of_one_sample_is_two_colours_with_a_legend(run):
    ax = plots.entropy_heatmap(run, 0, metric="agrees")
    assert len(figure_of(ax).axes) == 1
    assert {text.get_text().split("\n")[0] for text in ax.get_legend().get_texts()} == {"the final policy's", "another token"}
    assert set(np.unique(cells(ax))) == {0.0, 1.0}


def test_perplexity_has_logarithmic_colours_and_no_formulas(run):
    ax = plots.entropy_heatmap(run, metric="perplexity")
    draw(ax)
    assert ax.collections[0].norm(1.0) <= 0
    assert not any("$" in label for label in numbers(figure_of(ax).axes[1].yaxis))
    with pytest.raises(SelectionError, match="logp_next"):
        plots.entropy_heatmap(run, 0, metric="perplexity")


def test_the_colour_bar_names_metric_and_unit(run):
    assert figure_of(plots.entropy_heatmap(run)).axes[1].get_ylabel().replace("\n", " ") == "mean entropy of the internal policy [nats]"


def test_ends_of_the_colour_scale_can_be_fixed(run):
    norm = plots.entropy_heatmap(run, limits=(0.0, 12.0)).collections[0].norm
    assert (norm.vmin, norm.vmax) == (0, 12)
    with pytest.raises(SelectionError, match="low under high"):
        plots.entropy_heatmap(run, limits=(3.0, 3.0))


def test_missing_values_are_hatched_not_coloured(run):
    values = run.data["entropy"].values.copy()
    values[..., run.sites.index("resid_mid")] = np.nan
    ax = plots.entropy_heatmap(with_values(run, "entropy", values))
    assert np.isnan(cells(ax)[:, 3]).all()
    assert ax.patch.get_hatch()
    assert "hatched: no finite value" in caption_of(ax)
    draw(plots.entropy_heatmap(with_values(run, "entropy", values), 0, site="resid_mid"))


def test_some_layers_and_sites(run):
    some = part(run, layer=[2, 5, 12], site=["resid_post", "ffn_in"])
    ax = plots.entropy_heatmap(some)
    assert numbers(ax.yaxis) == ["2", "5", "12"]
    assert numbers(ax.xaxis) == ["resid_post", "ffn_in"]
    assert "layers 2, 5, 12 of 12" in caption_of(ax)
    assert numbers(plots.entropy_heatmap(some, 0).yaxis) == ["2", "5", "12"]


def test_errors_name_what_is_there(run):
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


def test_families_share_colours_and_relative_depth(run):
    runs = [run, rise_and_fall(36, name="Llama"), rise_and_fall(20, name="$x$", start=9.0)]
    axes = plots.family_grid(runs)
    assert len(axes) == 3
    norms = [ax.collections[0].norm for ax in axes]
    assert norms[0] is norms[1] is norms[2]
    assert [ax.get_title(loc="left") for ax in axes] == ["Qwen3-0.6B\n12 layers", "Llama\n36 layers", "\\$x\\$\n20 layers"]
    assert all(ax.get_ylim() == (0, 1) for ax in axes)
    assert [cells(ax).shape for ax in axes] == [(12, 7), (36, 7), (20, 7)]
    assert len(figure_of(axes).axes) == 4  # one colour bar
    np.testing.assert_allclose(cells(axes[1]), runs[1].mean("entropy", resamples=1)["mean"].values)
    draw(axes)


def test_families_with_different_sites_and_layers_stay_aligned(run):
    some = part(run, layer=[2, 12], site=["ffn_out", "resid_post"])
    axes = plots.family_grid([some, rise_and_fall(8)], columns=1)
    assert numbers(axes[1].xaxis) == run.sites
    here = cells(axes[0])
    assert here.shape == (12, 7)
    assert np.isfinite(here).sum() == 4
    np.testing.assert_allclose(here[11, 6], some.mean("entropy", resamples=1)["mean"].sel(layer=12, site="resid_post"))
    with pytest.raises(SelectionError, match="no run has attn_in"):
        plots.family_grid([some], site="attn_in")
    with pytest.raises(SelectionError, match="no run"):
        plots.family_grid([])


def test_a_callers_axes_keep_their_figure_and_get_a_caption_below(run):
    figure, axs = plt.subplots(1, 2, layout="constrained", figsize=(10, 4))
    for ax, drawn in zip(axs, (plots.entropy_heatmap(run, ax=axs[0]), plots.entropy_heatmap(run, 0, ax=axs[1])), strict=True):
        assert drawn is ax
    figure.draw_without_rendering()
    for ax in axs:
        (caption,) = [child for child in ax.get_children() if child.get_gid() == "caption"]
        assert caption.get_window_extent().y1 <= ax.xaxis.label.get_window_extent().y0
        assert caption.get_window_extent().y0 >= 0
    plt.close(figure)


def test_colours_stay_apart_in_grey():
    from layerlens.plots.tokens import AGREEMENT

    def light(color):
        r, g, b, _ = to_rgba(color)
        return 0.299 * r + 0.587 * g + 0.114 * b

    assert light(AGREEMENT(0.0)) - light(AGREEMENT(1.0)) > 0.4
