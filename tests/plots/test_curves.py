from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import matplotlib.pyplot as plt
import numpy as np
import pytest

from layerlens import plots
from layerlens.errors import SelectionError
from layerlens.plots.axis import layer_ticks
from layerlens.results import Run
from tests.support.plots import PHASES, caption_of, cells, draw, figure_of, numbers, part, rise_and_fall, with_values


@pytest.fixture(scope="module")
def run():
    return rise_and_fall(12, name="Qwen3-0.6B")


@pytest.fixture(scope="module")
def single():
    return rise_and_fall(12, samples=1)


def line(ax, label):
    (found,) = [item for item in ax.lines if item.get_label() == label]
    return found


def test_flow_follows_the_stream_through_every_block(run):
    ax = plots.entropy_flow(run)
    mean = run.mean("entropy", resamples=1)["mean"]
    stream = line(ax, "residual stream")
    np.testing.assert_allclose(stream.get_xdata(), np.arange(0.5, 12.6, 0.5))
    y = stream.get_ydata()
    np.testing.assert_allclose(y[0], mean.sel(layer=1, site="resid_pre"))
    np.testing.assert_allclose(y[1::2], mean.sel(site="resid_mid"))
    np.testing.assert_allclose(y[2::2], mean.sel(site="resid_post"))
    assert numbers(ax.xaxis)[0] == "1"
    assert "95% bootstrap interval over samples" in caption_of(ax)
    draw(ax)


def test_flow_has_an_arrow_per_module_and_layer(run):
    ax = plots.entropy_flow(run)
    mean = run.mean("entropy", resamples=1)["mean"]
    tips = [(x, y) for item in ax.lines if item.get_marker() in ("^", "v") for x, y in zip(item.get_xdata(), item.get_ydata(), strict=True)]
    assert len(tips) == 2 * 12
    heights = dict(tips)
    for layer in run.layers:
        np.testing.assert_allclose(heights[layer - 0.25], mean.sel(layer=layer, site="attn_out"))
        np.testing.assert_allclose(heights[layer + 0.25], mean.sel(layer=layer, site="ffn_out"))
    assert [text.get_text() for text in ax.get_legend().get_texts()] == ["residual stream", "attention: in → out", "FFN: in → out"]


def test_flow_draws_what_is_there(run):
    some = part(run, layer=[1, 2, 6, 12], site=["resid_post", "ffn_in", "ffn_out"])
    ax = plots.entropy_flow(some)
    stream = line(ax, "residual stream").get_xdata()
    assert np.isnan(stream).sum() == 2  # no line where layers were not analysed
    np.testing.assert_allclose(stream[np.isfinite(stream)], [1.5, 2.5, 6.5, 12.5])
    assert len(ax.get_legend().get_texts()) == 2
    draw(ax)
    draw(plots.entropy_flow(part(run, layer=[3])))
    draw(plots.entropy_flow(part(run, site=["attn_in", "attn_out"])))
    with pytest.raises(SelectionError, match="has only ffn_out"):
        plots.entropy_flow(part(run, site=["ffn_out"]))


def test_flow_of_a_parallel_model_skips_the_state_it_lacks(run):
    values = run.data["entropy"].values.copy()
    values[..., run.sites.index("resid_mid")] = np.nan
    stream = line(plots.entropy_flow(with_values(run, "entropy", values)), "residual stream")
    np.testing.assert_allclose(stream.get_xdata(), np.arange(0.5, 12.6, 1.0))


def test_change_holds_mean_and_interval(run):
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


def test_change_marks_phases_and_the_chosen_layer(run):
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


@pytest.mark.parametrize("phases", [{"exploration": None, "integration": None, "convergence": (1, 12)}, {"exploration": (1, 1)}, {}, None])
def test_phases_may_be_empty_or_one_layer_wide(run, phases):
    draw(plots.entropy_change(run, phases=phases))


def test_change_names_what_is_wrong(run):
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


def test_one_sample_draws_without_a_band_and_says_so(single):
    drawings = [
        plots.entropy_change(single, ["ffn", "attn"]),
        plots.entropy_flow(single),
        plots.metric_by_layer(single, "agrees"),
        plots.stream_cosine(single),
        plots.compare_families([single, single]),
    ]
    for drawn in drawings:
        assert "1 sample: no interval" in caption_of(drawn) or "no interval" in caption_of(drawn)
        draw(drawn)
    assert not drawings[0].collections


def test_similarity_holds_the_mean_matrix(run):
    for kind, name in (("cosine", "similarity"), ("cka", "cka")):
        ax = plots.similarity(run, kind)
        np.testing.assert_allclose(cells(ax), run.mean(name, resamples=1)["mean"].values)
        assert ax.collections[0].norm.vmax == 1
        assert figure_of(ax).axes[1]._colorbar.extend == "neither"
        assert numbers(ax.xaxis)[0] == "1"
        draw(ax)
    with pytest.raises(SelectionError, match="unknown kind"):
        plots.similarity(run, "euclid")
    with pytest.raises(SelectionError, match="has no 'cka'"):
        plots.similarity(Run(run.data.drop_vars("cka"), run.manifest), "cka")
    draw(plots.similarity(part(run, layer=[4])))


def test_rounding_above_one_does_not_point_the_colour_bar(run):
    ax = plots.similarity(with_values(run, "similarity", run.data["similarity"].values * np.float32(1.0000002)))
    assert figure_of(ax).axes[1]._colorbar.extend == "neither"


def test_negative_similarities_diverge_from_zero(run):
    values = run.data["similarity"].values * 2 - 1
    norm = plots.similarity(with_values(run, "similarity", values)).collections[0].norm
    assert (norm.vmin, norm.vmax) == (-1, 1)


def test_stream_cosine_shows_quantiles_of_response_tokens(run):
    axes = plots.stream_cosine(run)
    assert len(axes) == 2
    response = run.data["stream_cosine"].values[run.data["in_response"].values.astype(bool)].astype(float)
    for number, ax in enumerate(axes):
        np.testing.assert_allclose(line(ax, "median token").get_ydata(), np.median(response[:, :, number], axis=0))
        outer = ax.collections[0].get_paths()[0].vertices[:, 1]
        np.testing.assert_allclose(outer.max(), np.quantile(response[:, :, number], 0.95, axis=0).max())
        assert {"▲ amplifies", "▼ erases", "writes new\ndirections"} == {text.get_text() for text in ax.texts}
    assert "bands and median" in caption_of(axes)
    draw(axes)
    (only,) = plots.stream_cosine(run, "ffn", drop_first=3)
    assert "cos(ffn_out, resid_mid)" in only.get_ylabel()
    assert f"bands and median: {len(response) - 3 * run.n_samples} response rows" in caption_of(np.array([only]))
    with pytest.raises(SelectionError, match="no stream_cosine of layer"):
        plots.stream_cosine(run, "layer")


def test_models_of_different_depth_compare_on_relative_depth(run):
    deep = rise_and_fall(36, name="Llama", samples=5)
    for ax in (plots.entropy_curves([run, deep]), plots.metric_by_layer([run, deep], "agrees")):
        for model in (run, deep):
            np.testing.assert_allclose(line(ax, model.model).get_xdata(), np.arange(1, model.n_layers + 1) / model.n_layers)
        assert "relative depth" in ax.get_xlabel()
        assert "samples: 12 / 5" in caption_of(ax)
    axes = plots.compare_families([run, deep])
    np.testing.assert_allclose(line(axes[1], "Llama").get_ydata(), deep.mean("entropy_change")["mean"].sel(module="ffn"))
    draw(axes)


def test_lines_are_told_apart_by_more_than_colour():
    runs = [rise_and_fall(4, name=f"model {number}", samples=2) for number in range(9)]
    ax = plots.metric_by_layer(runs, "entropy")
    looks = {(item.get_marker(), item.get_linestyle()) for item in ax.lines}
    assert len(looks) == 9
    draw(ax)


def test_same_depth_counts_layers_from_1(run):
    ax = plots.metric_by_layer([run, rise_and_fall(12, name="other")], "kl_to_final")
    assert numbers(ax.xaxis)[0] == "1"
    assert ax.get_xlabel() == "layer"
    assert ax.get_ylim()[0] == 0


def test_runs_of_one_model_are_told_apart(run):
    ax = plots.entropy_curves([run, rise_and_fall(12, name="Qwen3-0.6B", norm="final")])
    assert [text.get_text() for text in ax.get_legend().get_texts()] == ["Qwen3-0.6B (norm: none)", "Qwen3-0.6B (norm: final)"]
    assert "norm: none / final" in caption_of(ax)
    assert len({text.get_text() for text in plots.entropy_curves([run, run]).get_legend().get_texts()}) == 2


def test_share_of_the_maximum(run):
    ax = plots.entropy_curves(run, scale="share")
    np.testing.assert_allclose(max(ax.lines[0].get_ydata()), 1.0)
    with pytest.raises(SelectionError, match="scale must be"):
        plots.entropy_curves(run, scale="bits")


@pytest.mark.parametrize("metric", ["entropy", "agrees", "kl_to_final", "logp_next", "perplexity"])
def test_any_metric_by_layer(run, metric):
    ax = plots.metric_by_layer(run, metric, site="ffn_out")
    np.testing.assert_allclose(ax.lines[0].get_ydata(), run.mean(metric)["mean"].sel(site="ffn_out"))
    assert ax.get_yscale() == ("log" if metric == "perplexity" else "linear")
    draw(ax)
    assert not any("$" in label for label in numbers(ax.yaxis))


def test_modules_by_layer(run):
    np.testing.assert_allclose(
        plots.metric_by_layer(run, "entropy_change", "attn").lines[0].get_ydata(), run.mean("entropy_change")["mean"].sel(module="attn")
    )
    with pytest.raises(SelectionError, match=r"no site 'ffn'.*resid_pre"):
        plots.metric_by_layer(run, "entropy", "ffn")


def test_an_incomplete_run_says_so(run):
    fewer = Run(run.data.isel(sample=slice(0, 5)).isel(token=run.data["sample"].values < 5), run.manifest)
    assert "5 of 12 samples" in caption_of(plots.entropy_change(fewer))


def test_a_level_and_a_temperature_are_in_the_caption(run):
    hot = Run(run.data, replace(run.manifest, config=replace(run.manifest.config, temperature=0.7)))
    caption = caption_of(plots.entropy_change(hot, level=0.8))
    assert "T = 0.7" in caption
    assert "80% bootstrap interval" in caption


@pytest.mark.parametrize(("n_layers", "size"), [(1, (9, 6)), (12, (3.2, 2.6)), (36, (3.2, 2.6)), (36, (9, 6))])
def test_axes_of_any_size(n_layers, size):
    run = rise_and_fall(n_layers, samples=3)
    for plot in (plots.entropy_flow, plots.entropy_change, plots.similarity, plots.entropy_heatmap):
        figure, ax = plt.subplots(figsize=size, layout="constrained")
        assert plot(run, ax=ax) is ax
        figure.draw_without_rendering()
        labels = [label.get_window_extent() for label in ax.get_xticklabels() if label.get_text() and label.get_rotation() == 0]
        assert all(a.x1 < b.x0 for a, b in pairwise(labels)), plot.__name__
        plt.close(figure)


@pytest.mark.parametrize(
    ("places", "gap", "expected"),
    [
        (range(1, 13), 1.0, list(range(1, 13))),
        (range(1, 37), 5.0, [1, 5, 10, 15, 20, 25, 30, 36]),
        (range(1, 37), 3.1, [1, 4, 8, 12, 16, 20, 24, 28, 32, 36]),
        ([1, 2, 6, 35, 36], 2.0, [1, 6, 36]),
        ([7], 3.0, [7]),
    ],
)
def test_ticks_are_round_numbers_with_the_first_and_the_last(places, gap, expected):
    assert layer_ticks(list(places), gap) == expected
