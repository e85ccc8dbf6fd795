"""The figure of scale and shape shows what `scale_shape` gives, and says under which norms."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import layerlens as ll
from layerlens import plots
from layerlens.cli.figures import FigureOptions, draw_figures
from layerlens.errors import SelectionError
from tests.support.plots import caption_of
from tests.support.tiny_models import random_ids


@pytest.fixture(scope="module")
def pair(qwen: ll.LensModel) -> tuple[ll.Run, ll.Run]:
    samples = [ll.Sample(random_ids(8 + index, index), 3) for index in range(3)]
    none, matched = (ll.analyze(qwen, samples, norm=norm, metrics="entropy") for norm in ("none", "matched"))
    return none, matched


def test_curves_are_the_change_and_its_two_parts(pair: tuple[ll.Run, ll.Run]) -> None:
    for module in ("ffn", "attn"):
        ax, parts = plots.scale_shape(*pair, module), ll.scale_shape(*pair).sel(module=module)
        change, shape, scale = (line.get_ydata() for line in ax.lines[:3])
        np.testing.assert_allclose(change, parts["mean"].sel(part="change"))
        np.testing.assert_allclose(shape, parts["mean"].sel(part="shape"))
        np.testing.assert_allclose(np.add(shape, scale), change, atol=1e-6)
        assert len(ax.collections) == 3
        assert [text.get_text() for text in ax.get_legend().get_texts()] == [
            "ΔS under norm none",
            "part of shape (ΔS under norm matched)",
            "part of scale (the rest)",
        ]


def test_caption_names_both_norms_the_spread_and_the_correlation(pair: tuple[ll.Run, ll.Run]) -> None:
    caption = caption_of(plots.scale_shape(*pair))
    correlation = float(ll.scale_shape(*pair)["rank_correlation"].sel(module="ffn"))
    assert f"norm: none / matched (spread {pair[1].spread:.3g} logits)" in caption
    assert f"rank correlation of entropy with the logits' spread: {correlation:.2f}" in caption


def test_command_line_draws_it_of_two_runs_by_name_alone(pair: tuple[ll.Run, ll.Run], tmp_path: Path) -> None:
    assert draw_figures(pair, tmp_path, ["scale-shape"], FigureOptions()) == ([tmp_path / "scale-shape.png"], [])
    with pytest.raises(SelectionError, match="scale and shape are of two runs of one model, norm none and norm matched; got 1"):
        draw_figures(pair[:1], tmp_path, ["scale-shape"], FigureOptions())
    with pytest.raises(SelectionError, match="no module 'mlp' in both runs; they have attn, ffn, layer"):
        plots.scale_shape(*pair, "mlp")
