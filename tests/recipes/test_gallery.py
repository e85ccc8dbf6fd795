"""The gallery shows every public figure, with code that can be read and the numbers that are drawn."""

from __future__ import annotations

import ast
from pathlib import Path

import matplotlib
import pandas as pd
import pytest
from recipes.site.gallery import PAGE, blocks, draw_gallery
from recipes.site.sources import ROOT

import layerlens as ll

TEXT = PAGE.read_text(encoding="utf-8")
WITHOUT_NUMBERS = {"settling_text"}
"""Figures of text alone."""


def test_every_public_figure_is_in_the_gallery_by_its_own_code() -> None:
    shown = {Path(image).stem: code for code, image in blocks(TEXT) if image is not None}
    assert set(shown) == set(ll.plots.__all__) - {"data", "save"}
    for name, code in shown.items():
        calls = {ast.unparse(node.func) for node in ast.walk(ast.parse(code)) if isinstance(node, ast.Call)}
        assert f"ll.plots.{name}" in calls


def test_the_code_of_the_gallery_is_one_program() -> None:
    ast.parse("".join(code for code, _ in blocks(TEXT)))


@pytest.mark.parametrize("image", [image for _, image in blocks(TEXT) if image is not None])
def test_a_figure_lies_beside_the_numbers_that_it_draws(image: str) -> None:
    path = ROOT / image
    assert 5_000 < path.stat().st_size < 250_000
    if path.stem not in WITHOUT_NUMBERS:
        numbers = pd.read_csv(path.with_suffix(".csv"))
        assert {"line", "interval", "cell"} >= set(numbers["kind"])
        assert len(numbers) > 2


def test_the_gallery_is_drawn_from_top_to_bottom(tmp_path: Path) -> None:
    text = (
        "```python\nfrom matplotlib.figure import Figure\n```\n\n```python\ndrawn = Figure().subplots()\ndrawn.plot([1, 2, 3])\n```\n\n"
        "![a](../figures/gallery/a.png)\n"
    )
    assert draw_gallery(text, tmp_path) == [tmp_path / "figures/gallery/a.png"]
    assert pd.read_csv(tmp_path / "figures/gallery/a.csv")["value"].tolist() == [1, 2, 3]
    assert matplotlib.get_backend().lower() == "agg"
