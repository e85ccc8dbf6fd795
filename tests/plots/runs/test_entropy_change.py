from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from layerlens import plots
from layerlens.errors import SelectionError
from layerlens.results import Run
from layerlens.selection import select_layer
from tests.support.plots import (
    PHASES,
    caption_of,
    draw,
    figure_of,
    line,
    part,
)
from tests.support.synthetic_runs import make_run


def test_entropy_change_holds_mean_and_interval(run):
    ax = plots.entropy_change(run)
    expected = run.mean("entropy_change").sel(module="ffn")
    curve = line(ax, "FFN")
    np.testing.assert_array_equal(curve.get_xdata(), run.layers)
    np.testing.assert_allclose(curve.get_ydata(), expected["mean"])
    band = ax.collections[0].get_paths()[0].vertices
    np.testing.assert_allclose(band[:, 1].max(), expected["high"].max())
    np.testing.assert_allclose(band[:, 1].min(), expected["low"].min())
    assert any(np.allclose(item.get_ydata(), 0) for item in ax.lines)  # the zero line
    assert "[nats]" in ax.get_ylabel()


def test_entropy_change_marks_phases_and_the_chosen_layer(run):
    ax = plots.entropy_change(run, ["ffn", "attn", "layer"], phases=PHASES, layer=3)
    assert {text.get_text() for text in ax.texts} >= set(PHASES)
    ring = line(ax, "chosen: layer 3")
    np.testing.assert_allclose(ring.get_ydata(), run.mean("entropy_change")["mean"].sel(module="ffn", layer=3))
    spans = [patch.get_bbox() for patch in ax.patches]
    assert [(box.x0, box.x1) for box in spans][1:] == [(3.5, 9.5), (9.5, min(12.5, ax.get_xlim()[1]))]
    draw(ax)
    figure_of(ax).draw_without_rendering()
    # no name of a phase lies on the curve
    top = max(item.get_window_extent().y1 for item in ax.lines if item.get_label() in ("FFN", "attention", "whole layer"))
    assert all(text.get_window_extent().y0 > top for text in ax.texts)


def test_entropy_change_names_the_rule_of_a_choice(run):
    found = select_layer(run, "boundary", resamples=50)
    ax = plots.entropy_change(run, choice=found)
    assert found.outcome == "layer"
    assert line(ax, f"boundary: layer {found.layer}").get_xdata() == [found.layer]
    assert f"the rule boundary names layer {found.layer}, in 100% of resamples" in caption_of(ax)
    assert {text.get_text() for text in ax.texts} >= {name for name, span in found.phases.items() if span}
    with pytest.raises(SelectionError, match="leave out phases= and layer="):
        plots.entropy_change(run, choice=found, layer=3)


def test_entropy_change_says_that_a_boundary_is_open():
    rising = make_run([0.1] * 12)
    ax = plots.entropy_change(rising, choice=select_layer(rising, "boundary", resamples=50))
    line(ax, "boundary: layer 11 (open)")
    assert "names layer 11, in 100% of resamples (open: an end of the model by construction)" in caption_of(ax)
    draw(ax)


@pytest.mark.parametrize("phases", [{"exploration": None, "integration": None, "convergence": (1, 12)}, {"exploration": (1, 1)}, {}, None])
def test_entropy_change_phases_may_be_empty_or_one_layer_wide(run, phases):
    draw(plots.entropy_change(run, phases=phases))


def test_entropy_change_errors_name_what_is_wrong(run):
    with pytest.raises(SelectionError, match="unknown module 'mlp'"):
        plots.entropy_change(run, "mlp")
    with pytest.raises(SelectionError, match="unknown module"):
        plots.entropy_change(run, [])
    with pytest.raises(SelectionError, match="lacks ffn_in"):
        plots.entropy_change(part(run, site=["ffn_out", "resid_pre", "resid_post"]))
    with pytest.raises(SelectionError, match="layer 13 was not analysed"):
        plots.entropy_change(run, layer=13)
    with pytest.raises(SelectionError, match=r"convergence at layers 10 to 40 does not lie in 1\.\.12"):
        plots.entropy_change(run, phases={"convergence": (10, 40)})
    with pytest.raises(SelectionError, match="unknown phase"):
        plots.entropy_change(run, phases={"boredom": (1, 2)})


def test_entropy_change_caption_counts_the_samples_of_an_incomplete_run(run):
    fewer = Run(run.data.isel(sample=slice(0, 5)).isel(token=run.data["sample"].values < 5), run.manifest)
    assert "5 of 12 samples" in caption_of(plots.entropy_change(fewer))


def test_entropy_change_caption_names_level_and_temperature(run):
    hot = Run(run.data, replace(run.manifest, config=replace(run.manifest.config, temperature=0.7)))
    caption = caption_of(plots.entropy_change(hot, level=0.8))
    assert "T = 0.7" in caption
    assert "80% bootstrap interval" in caption
