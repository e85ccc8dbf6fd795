"""Figures of settling depth: text, shares by segment or correctness, and accuracy by deep-thinking ratio."""

from __future__ import annotations

import matplotlib.pyplot as plt
import numpy as np
import pytest

import layerlens as ll
from layerlens import plots
from layerlens.errors import SelectionError
from layerlens.results import Run
from layerlens.results.settling import accuracy_by_ratio, settling_shares
from tests.support.plots import caption_of, draw
from tests.support.thinking_runs import RIGHT, TEXTS, thinking_run


@pytest.fixture(scope="module")
def run() -> ll.Run:
    return thinking_run(copies=4)


@pytest.fixture(scope="module")
def right() -> np.ndarray:
    return np.array(RIGHT * 4)


@pytest.mark.parametrize("rows", ["all", "response"])
def test_text_shows_every_token_of_the_response_in_the_colour_of_the_row_that_predicts_it(rows: str) -> None:
    run = thinking_run(rows)
    ax = plots.settling_text(run, 0)
    draw(ax)
    sample = Run(run.sample(0), run.manifest)
    response = sample.row_mask()
    np.testing.assert_array_equal(ax.collections[0].get_array(), sample.values("settling_depth").values[response])
    texts = [text for text in ax.texts if text.get_position()[1] % 1 == 0.5]
    assert "".join(text.get_text() for text in texts) == TEXTS[0][1]
    bold = [text.get_weight() == "bold" for text in texts]
    np.testing.assert_array_equal(bold, sample.values("deep_thinking_ratio").values[response] == 1)
    (line,) = ax.lines
    assert line.get_xdata().tolist() == [len("<think>"), len("<think>add")]
    assert "underlined: thinking" in caption_of(ax)


def test_text_breaks_at_the_width_of_the_axes_and_can_be_cut(run: ll.Run) -> None:
    figure, ax = plt.subplots(figsize=(3, 3), layout="constrained")
    plots.settling_text(run, 0, ax=ax, rows="all")
    draw(ax)
    lines = {text.get_position()[1] for text in ax.texts}
    assert len(lines) >= 2
    plt.close(figure)
    assert len(plots.settling_text(run, 0, tokens=slice(2, 5)).texts) == 3
    with pytest.raises(SelectionError, match="leaves no token"):
        plots.settling_text(run, 0, tokens=slice(900, None))


def test_text_needs_every_row() -> None:
    run = thinking_run()
    some = Run(run.data.isel(token=np.arange(run.data.sizes["token"]) % 2 == 0), run.manifest)
    with pytest.raises(SelectionError, match="needs every row of it"):
        plots.settling_text(some, 0)


def test_shares_are_drawn_by_segment_or_by_right_and_wrong(run: ll.Run, right: np.ndarray) -> None:
    for correct, names in ((None, ["thinking", "answer"]), (right, ["right", "wrong"])):
        ax = plots.settling_depths(run, correct)
        draw(ax)
        shares = settling_shares(run, correct)
        assert [line.get_label() for line in ax.lines] == names
        for line, mean in zip(ax.lines, shares["mean"].values, strict=True):
            np.testing.assert_array_equal(line.get_ydata(), mean)
    assert "thinking rows" in caption_of(plots.settling_depths(run, right, segment="thinking"))


def test_accuracy_is_drawn_over_the_ratio_with_a_mark_for_every_response(run: ll.Run, right: np.ndarray) -> None:
    ax = plots.deep_thinking(run, right)
    draw(ax)
    found = accuracy_by_ratio(run, right)
    ratio = run.sample_means("deep_thinking_ratio").values
    above, below, bins = ax.lines[:3]
    np.testing.assert_array_equal(above.get_xdata(), ratio[right])
    np.testing.assert_array_equal(below.get_xdata(), ratio[~right])
    np.testing.assert_array_equal(bins.get_ydata(), found["mean"])
    assert f"r = {float(found['correlation']):.2f} (" in caption_of(ax)
    assert "does not vary" in caption_of(plots.deep_thinking(run, np.ones(12, bool)))
