from __future__ import annotations

import os
from xml.etree import ElementTree

import matplotlib.pyplot as plt
import numpy as np
import pytest

from layerlens import plots
from layerlens.errors import LayerLensError, SelectionError
from tests.support.plots import (
    figure_of,
    rise_and_fall,
    with_tokens,
)


@pytest.fixture(scope="module")
def run():
    return rise_and_fall(6, samples=3)


@pytest.mark.parametrize("suffix", ["png", "svg", "pdf"])
def test_save_writes_reproducible_files(run, tmp_path, suffix):
    paths = [plots.save(plots.entropy_change(run, layer=2), tmp_path / "deep" / f"{name}.{suffix}") for name in "ab"]
    first, second = (path.read_bytes() for path in paths)
    assert first == second
    assert {path.name for path in (tmp_path / "deep").iterdir()} == {f"a.{suffix}", f"b.{suffix}"}
    assert first.startswith({"png": b"\x89PNG", "svg": b"<?xml", "pdf": b"%PDF"}[suffix])


def test_save_keeps_text_as_text_in_svg_and_pdf(run, tmp_path):
    odd = with_tokens(run, ["$x$", "<b>", "\x01", "你"])
    svg = plots.save(plots.entropy_heatmap(odd, 0), tmp_path / "a.svg")
    texts = {"".join(node.itertext()) for node in ElementTree.parse(svg).iter("{http://www.w3.org/2000/svg}text")}
    assert {"$x$", "<b>", r"\x01", "layer"} <= texts
    assert b"/FontFile2" in plots.save(plots.entropy_heatmap(odd, 0), tmp_path / "a.pdf").read_bytes()


def test_save_writes_png_at_200_dots_per_inch(run, tmp_path):
    image = plt.imread(plots.save(figure_of(plots.similarity(run)), tmp_path / "a.png"))
    assert image.shape[1] > 200 * 3


def test_save_that_fails_leaves_the_old_file(run, tmp_path, monkeypatch):
    path = plots.save(plots.entropy_change(run), tmp_path / "a.png")
    before = path.read_bytes()
    monkeypatch.setattr(os, "replace", lambda *_: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(LayerLensError, match=r"a\.png cannot be written \(disk full\)"):
        plots.save(plots.entropy_flow(run), path)
    assert path.read_bytes() == before
    assert os.listdir(tmp_path) == ["a.png"]


def test_save_refuses_what_it_cannot_write(run, tmp_path):
    with pytest.raises(SelectionError, match=r"\.png, \.svg, \.pdf"):
        plots.save(plots.entropy_change(run), tmp_path / "a.gif")
    (tmp_path / "file").touch()
    with pytest.raises(LayerLensError, match="cannot be written"):
        plots.save(plots.entropy_change(run), tmp_path / "file" / "a.png")
    with pytest.raises(SelectionError, match="expected a figure or the axes"):
        plots.save(np.array([]), tmp_path / "a.png")
