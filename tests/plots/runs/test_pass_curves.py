from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from layerlens.errors import SelectionError
from layerlens.evaluate import pass_table
from layerlens.plots import pass_curves
from tests.support.plots import caption_of, draw, numbers


def table(model: str = "Qwen3-4B", task: str = "aime24", share: float = 0.2, problems: int = 30, answers: int = 256) -> pd.DataFrame:
    rng = np.random.default_rng(int(100 * share))
    chances = rng.beta(share, 1 - share, size=(problems, 1))
    passes = pass_table(rng.random((problems, answers)) < chances)
    return passes.assign(model=model, task=task, problems=problems, answers=answers, temperature=1.0, level=0.95)


def test_the_line_and_band_hold_the_table() -> None:
    one = table()
    ax = pass_curves(one)
    line, *_ = ax.lines
    np.testing.assert_allclose(line.get_xydata(), one[["k", "mean"]])
    corners = ax.collections[0].get_paths()[0].vertices
    for _, row in one.iterrows():
        assert any(np.allclose(corner, (row["k"], row["low"])) for corner in corners)
        assert any(np.allclose(corner, (row["k"], row["high"])) for corner in corners)
    assert numbers(ax.xaxis) == [str(1 << power) for power in range(9)]
    assert ax.get_title(loc="left") == "Qwen3-4B · aime24"
    assert caption_of(ax) == (
        "Pass@k of Qwen3-4B · 30 problems · 256 answers each, unbiased · T = 1 · band: 95% interval for other problems like these"
        " · bars: for other answers to these very problems"
    )
    draw(ax)


def test_bars_hold_the_interval_over_answers() -> None:
    one = table()
    bars = pass_curves(one).collections[-1].get_segments()
    known = one[one["k"] < 256]
    for segment, (_, row) in zip(bars, known.iterrows(), strict=False):
        np.testing.assert_allclose(segment, [[row["k"], row["answers_low"]], [row["k"], row["answers_high"]]])
    old = pass_curves(one.drop(columns=["bound", "answers_low", "answers_high"]))
    assert len(old.lines) == 1
    assert "bars" not in caption_of(old)
    easy = pass_table(np.ones((8, 4), bool)).assign(model="m", task="t")
    assert "without spread, the band is a bound" in caption_of(pass_curves(easy))


def test_models_are_told_apart() -> None:
    tables = [table(), table("Qwen3-4B BuPO", share=0.3), table("Llama-3B", share=0.05, answers=16), table("Llama-3B", share=0.06)]
    ax = pass_curves(tables)
    assert [text.get_text() for text in ax.get_legend().get_texts()] == ["Qwen3-4B", "Qwen3-4B BuPO", "Llama-3B #3", "Llama-3B #4"]
    assert len({(line.get_color(), line.get_marker(), str(line.get_linestyle())) for line in ax.lines}) == 4
    assert "256 / 16 answers" in caption_of(ax)
    draw(ax)
    together = pass_curves(pd.concat(tables[:2]))
    assert len(together.lines) == 2


def test_one_problem_has_no_band() -> None:
    ax = pass_curves(table(problems=1, answers=4))
    assert len(ax.collections) == 1, "the bars alone"
    assert "1 problem: no interval for others · bars: for other answers" in caption_of(ax)
    draw(pass_curves(table(answers=1)))


def test_answers_that_were_not_checked_are_told() -> None:
    found = [table().assign(unchecked=0), table("Llama-3B").assign(unchecked=7)]
    assert "unbiased · 0 / 7 answers not checked, counted as wrong · T = 1" in caption_of(pass_curves(found))
    assert "not checked" not in caption_of(pass_curves(found[0]))


def test_mistakes() -> None:
    with pytest.raises(SelectionError, match=r"low, high missing"):
        pass_curves(table().drop(columns=["low", "high"]))
    with pytest.raises(SelectionError, match="name one with task="):
        pass_curves([table(), table(task="amc23")])
    with pytest.raises(SelectionError, match="no task 'math500'"):
        pass_curves(table(), "math500")
    with pytest.raises(SelectionError, match="no Pass@k to draw"):
        pass_curves([])
    assert len(pass_curves([table(), table(task="amc23")], "amc23").lines) == 1
