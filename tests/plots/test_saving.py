from __future__ import annotations

import gc
import os
import subprocess
import sys
import weakref
from xml.etree import ElementTree

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import pytest
from matplotlib.figure import Figure

from layerlens import plots
from layerlens.errors import LayerLensError, SelectionError
from layerlens.plots.labels import plain, token_label
from tests.support.plots import figure_of, rise_and_fall, with_tokens


@pytest.fixture(scope="module")
def run():
    return rise_and_fall(6, samples=3)


def one_of_each(run):
    yield plots.entropy_heatmap(run)
    yield plots.entropy_heatmap(run, 0)
    yield plots.family_grid([run, run])
    yield plots.entropy_flow(run)
    yield plots.entropy_change(run, layer=2)
    yield plots.similarity(run)
    yield plots.stream_cosine(run)
    yield plots.entropy_curves([run, run])
    yield plots.compare_families([run, run])
    yield plots.metric_by_layer(run, "perplexity")


def test_rcparams_are_as_before_and_pyplot_knows_no_figure(run):
    before = dict(mpl.rcParams)
    for drawn in one_of_each(run):
        assert isinstance(figure_of(drawn), Figure)
    assert dict(mpl.rcParams) == before
    assert plt.get_fignums() == []


def test_figures_go_with_their_last_reference(run):
    ax = plots.entropy_change(run)
    gone = weakref.ref(figure_of(ax))
    del ax
    gc.collect()
    assert gone() is None


def test_interactive_figures_belong_to_pyplot(run):
    with plt.ion():
        ax = plots.entropy_change(run)
    assert plt.fignum_exists(figure_of(ax).number)
    plt.close("all")


@pytest.mark.parametrize("suffix", ["png", "svg", "pdf"])
def test_files_are_reproducible_and_whole(run, tmp_path, suffix):
    paths = [plots.save(plots.entropy_change(run, layer=2), tmp_path / "deep" / f"{name}.{suffix}") for name in "ab"]
    first, second = (path.read_bytes() for path in paths)
    assert first == second
    assert {path.name for path in (tmp_path / "deep").iterdir()} == {f"a.{suffix}", f"b.{suffix}"}
    assert first.startswith({"png": b"\x89PNG", "svg": b"<?xml", "pdf": b"%PDF"}[suffix])


def test_text_stays_text_in_svg_and_pdf(run, tmp_path):
    odd = with_tokens(run, ["$x$", "<b>", "\x01", "你"])
    svg = plots.save(plots.entropy_heatmap(odd, 0), tmp_path / "a.svg")
    texts = {"".join(node.itertext()) for node in ElementTree.parse(svg).iter("{http://www.w3.org/2000/svg}text")}
    assert {"$x$", "<b>", r"\x01", "layer"} <= texts
    assert b"/FontFile2" in plots.save(plots.entropy_heatmap(odd, 0), tmp_path / "a.pdf").read_bytes()


def test_png_has_200_dots_per_inch(run, tmp_path):
    image = plt.imread(plots.save(figure_of(plots.similarity(run)), tmp_path / "a.png"))
    assert image.shape[1] > 200 * 3


def test_a_failed_save_leaves_the_old_file(run, tmp_path, monkeypatch):
    path = plots.save(plots.entropy_change(run), tmp_path / "a.png")
    before = path.read_bytes()
    monkeypatch.setattr(os, "replace", lambda *_: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(LayerLensError, match=r"a\.png cannot be written \(disk full\)"):
        plots.save(plots.entropy_flow(run), path)
    assert path.read_bytes() == before
    assert os.listdir(tmp_path) == ["a.png"]


def test_save_refuses_what_it_can_not_write(run, tmp_path):
    with pytest.raises(SelectionError, match=r"\.png, \.svg, \.pdf"):
        plots.save(plots.entropy_change(run), tmp_path / "a.gif")
    (tmp_path / "file").touch()
    with pytest.raises(LayerLensError, match="cannot be written"):
        plots.save(plots.entropy_change(run), tmp_path / "file" / "a.png")
    with pytest.raises(SelectionError, match="expected a figure or the axes"):
        plots.save(np.array([]), tmp_path / "a.png")


def test_public_names_are_there_and_documented():
    for name in plots.__all__:
        assert getattr(plots, name).__doc__


def test_importing_plots_chooses_no_backend_and_opens_no_figure():
    code = (
        "import matplotlib, layerlens.plots, matplotlib.pyplot as plt\n"
        "assert matplotlib.rcParams._get_backend_or_none() is None and not plt.get_fignums()"
    )
    subprocess.run([sys.executable, "-c", code], check=True, env={key: value for key, value in os.environ.items() if key != "MPLBACKEND"})


@pytest.mark.parametrize(
    ("text", "label"),
    [
        (" the", "␣the"), ("", "∅"), ("a b", "a␣b"), ("\n\n", "⏎⏎"), (" " * 8, "␣×8"), ("$5", r"\$5"), ("\x1b", r"\x1b"),
        ("\ue000", r"\ue000"), ("e\u0301", "e\u0301"), ("antidisestablishmentarianism", "antidis…ianism"), ("<|im_end|>", "<|im_end|>"),
    ],
)  # fmt: skip
def test_token_labels(text, label):
    assert token_label(text) == label


def test_escapes_are_cut_between_characters():
    label = token_label("\ue000" * 2 + "\ue001" * 3)
    assert label == r"\ue000…\ue001"


def test_plain_text_shows_every_letter_as_it_is():
    figure = Figure()
    for text in ("$x$", r"\$", "a$b$c$", "_^{}", r"\frac{1}{2}", "100%"):
        shown, is_math = figure.text(0, 0, plain(text))._preprocess_math(plain(text))
        assert (shown, bool(is_math)) == (text, False)
