from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from matplotlib.colors import to_rgba

from layerlens import plots
from layerlens.errors import SelectionError
from layerlens.plots.runs.entropy_heatmap import AGREEMENT
from tests.support.plots import (
    caption_of,
    cells,
    draw,
    figure_of,
    numbers,
    rise_and_fall,
    with_tokens,
)

ODD_TOKENS = [
    " sum", "\n", "$x^2$", "\\$", "你好", "😀", "\x00", "", "\u0301", "\u200d", "مرحبا", "<|im_end|>", "_^{", "\t\t\t\t\t", "\ue000",
]  # fmt: skip


def test_entropy_heatmap_holds_a_samples_entropies_layer_by_token(run):
    ax = plots.entropy_heatmap(run, "s2", site="ffn_out")
    rows = run.sample("s2")
    np.testing.assert_allclose(cells(ax), rows["entropy"].sel(site="ffn_out").values.T)
    assert numbers(ax.yaxis) == [str(layer) for layer in range(1, 13)]
    assert ax.get_ylabel() == "layer"
    assert ax.get_ylim() == (-0.5, 11.5)
    draw(ax)


def test_entropy_heatmap_by_number_is_by_id(run):
    np.testing.assert_array_equal(cells(plots.entropy_heatmap(run, 3)), cells(plots.entropy_heatmap(run, "s3")))


def test_token_labels_show_blanks(run):
    labels = numbers(plots.entropy_heatmap(with_tokens(run, [" a", "\n", "b c", "$y$", "\t"]), 0).xaxis)
    assert labels[:5] == ["␣a", "⏎", "b␣c", r"\$y\$", "⇥"]


def test_entropy_heatmap_marks_where_the_response_begins(run):
    ax = plots.entropy_heatmap(run, 0)
    first = int(run.sample(0)["in_response"].values.argmax())
    edges = {line.get_xdata()[0] for line in ax.lines}
    assert edges == {first - 0.5}
    assert any("predicts response" in text.get_text() for text in ax.texts)
    assert not plots.entropy_heatmap(run, 0, tokens=slice(first, first + 5)).lines


def test_entropy_heatmap_of_a_token_window(run):
    ax = plots.entropy_heatmap(run, 1, tokens=slice(5, 9))
    np.testing.assert_allclose(cells(ax), run.sample(1)["entropy"].sel(site="resid_post").values[5:9].T)
    assert len(numbers(ax.xaxis)) == 4
    assert "4 of 21 tokens" in caption_of(ax)
    with pytest.raises(SelectionError, match="leaves none of the sample's 21 tokens"):
        plots.entropy_heatmap(run, 1, tokens=slice(50, 60))


def test_token_labels_are_thinned_until_they_do_not_overlap():
    ax = plots.entropy_heatmap(rise_and_fall(36, samples=1, tokens=600), 0)
    draw(ax)
    labels = [label for label in ax.get_xticklabels() if label.get_text()]
    assert 20 < len(labels) < 150
    assert labels[1].get_text().split("  ")[0] == str(int(ax.get_xticks()[1]))  # named with its position
    boxes = sorted((label.get_window_extent() for label in labels), key=lambda box: box.x0)
    assert all(a.x1 <= b.x0 for a, b in pairwise(boxes))
    assert ax.collections[0].get_rasterized()


def test_token_labels_draw_any_text_without_a_warning(run):
    ax = plots.entropy_heatmap(with_tokens(run, ODD_TOKENS), 0)
    draw(ax)
    labels = numbers(ax.xaxis)
    assert r"\$x^2\$" in labels
    assert r"\x00" in labels
    assert "∅" in labels


def test_entropy_heatmap_of_agreement_is_two_colours_with_a_legend(run):
    ax = plots.entropy_heatmap(run, 0, metric="agrees")
    assert len(figure_of(ax).axes) == 1
    assert {text.get_text().split("\n")[0] for text in ax.get_legend().get_texts()} == {"the final policy's", "another token"}
    assert set(np.unique(cells(ax))) == {0.0, 1.0}


def test_agreement_colours_stay_apart_in_grey():
    def light(color):
        r, g, b, _ = to_rgba(color)
        return 0.299 * r + 0.587 * g + 0.114 * b

    assert light(AGREEMENT(0.0)) - light(AGREEMENT(1.0)) > 0.4
