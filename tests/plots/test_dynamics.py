from __future__ import annotations

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from matplotlib.figure import Figure

from layerlens.errors import SelectionError
from layerlens.plots import dynamics, save, trained
from layerlens.plots.steps import SWITCH, smoothed
from layerlens.results.training_log import HIGH, LOW, open_training
from tests.support.plots import caption_of, cells, draw, figure_of, numbers
from tests.support.training_folders import write_training


@pytest.fixture(scope="module")
def log(tmp_path_factory):
    return open_training(write_training(tmp_path_factory.mktemp("out") / "bupo"))


@pytest.fixture(scope="module")
def baseline(tmp_path_factory):
    return open_training(write_training(tmp_path_factory.mktemp("out") / "grpo", layer=None, seed=1))


@pytest.fixture(scope="module")
def deep(tmp_path_factory):
    return open_training(write_training(tmp_path_factory.mktemp("out") / "deep", layers=36, layer=6, internal=30, steps=300))


def switches(ax):
    return [line.get_xdata()[0] for line in ax.lines if line.get_gid() == SWITCH]


def curves(ax):
    """The lines that hold data, without those as logged."""
    return {line.get_label(): np.column_stack(line.get_data()) for line in ax.lines if not line.get_label().startswith("_")}


# ---- training dynamics


def test_dynamics_draw_what_the_log_and_the_monitor_hold(log):
    axes = dynamics.training_dynamics(log, smooth=1)
    for ax, (frame, name) in zip(
        axes,
        [(log.log, "reward"), (log.monitor, "policy_entropy"), (log.monitor, "response_length"), (log.monitor, "perplexity")],
        strict=True,
    ):
        np.testing.assert_allclose(curves(ax)["bupo"], frame[["step", name]].to_numpy())
    draw(axes)
    assert [ax.get_xlabel() for ax in axes] == ["", "", "optimizer step", "optimizer step"]
    assert "[tokens]" in axes[2].get_ylabel()


def test_the_smoothed_reward_lies_over_the_raw_one_and_says_so(log):
    (ax,) = dynamics.training_dynamics(log, ["reward"], smooth=5)
    raw, thick = [line for line in ax.lines if line.get_gid() != SWITCH]
    np.testing.assert_allclose(raw.get_ydata(), log.log["reward"])
    assert thick.get_linewidth() > 2 * raw.get_linewidth()
    np.testing.assert_allclose(thick.get_ydata()[20], log.log["reward"][18:23].mean())
    assert "thick: the trainer's log, centred mean of 5 entries within a phase (faint: as logged)" in caption_of(ax)
    with pytest.raises(SelectionError, match="smooth counts log entries"):
        dynamics.training_dynamics(log, smooth=0)


def test_smoothing_does_not_cross_a_switch():
    values = np.array([0.0] * 10 + [1.0] * 10)
    np.testing.assert_array_equal(smoothed(np.arange(1, 21), values, 5, [(1, 10, 4)]), values)
    assert 0 < smoothed(np.arange(1, 21), values, 5)[9] < 1


def test_the_internal_phase_is_shaded_and_its_end_marked(log):
    axes = dynamics.training_dynamics(log)
    for ax in axes:
        assert switches(ax) == [10.5]
        (span,) = ax.patches
        assert (span.get_x(), span.get_x() + span.get_width()) == (0, 10.5)
    texts = [text.get_text() for text in figure_of(axes).legends[0].get_texts()]
    assert texts == ["bupo", "internal: layer 4, steps 1 to 10"]


def test_runs_are_told_apart_without_colour(log, baseline, deep):
    axes = dynamics.training_dynamics([log, baseline, deep])
    texts = [text.get_text() for text in figure_of(axes).legends[0].get_texts()]
    assert texts == ["bupo (internal: layer 4, steps 1 to 10)", "grpo", "deep (internal: layer 6, steps 1 to 30)"]
    lines = [line for line in axes[1].lines if line.get_gid() != SWITCH]
    assert len({(line.get_linestyle(), line.get_marker()) for line in lines}) == 3
    marks = [line for line in axes[1].lines if line.get_gid() == SWITCH]
    assert [(mark.get_xdata()[0], mark.get_linestyle()) for mark in marks] == [
        (10.5, lines[0].get_linestyle()),
        (30.5, lines[2].get_linestyle()),
    ]
    draw(axes)


def test_a_baseline_has_no_phase(baseline):
    for ax in dynamics.training_dynamics(baseline):
        assert switches(ax) == []
        assert not ax.patches


def test_a_phase_that_lasts_has_no_end(tmp_path):
    log = open_training(write_training(tmp_path / "out", internal=40))
    (ax,) = dynamics.training_dynamics(log, ["reward"])
    assert switches(ax) == []
    assert len(ax.patches) == 1


def test_any_column_can_be_drawn_and_an_unknown_one_is_refused(log):
    axes = dynamics.training_dynamics(log, ["kl/above", "entropy/layer_4", "completions/mean_length"])
    np.testing.assert_allclose(curves(axes[1])["bupo"][:, 1], log.monitor["entropy/layer_4"])
    with pytest.raises(SelectionError, match=r"no 'speed'.*It has .*policy_entropy"):
        dynamics.training_dynamics(log, ["speed"])
    with pytest.raises(SelectionError, match="no metric"):
        dynamics.training_dynamics(log, [])
    with pytest.raises(SelectionError, match="no training log"):
        dynamics.training_dynamics([])


def test_captions_say_model_norm_probe_and_interval(log):
    caption = caption_of(dynamics.training_dynamics(log))
    said = ("tiny-qwen3", "norm: none", "probe of 16 problems", "full policy under its own final norm")
    for words in (*said, "bands: 95% bootstrap interval over problems"):
        assert words in caption
    without = replace(log, monitor=log.monitor.drop(columns=[name for name in log.monitor if name.endswith((LOW, HIGH))]))
    assert "no interval" in caption_of(dynamics.training_dynamics(without))
    heat = caption_of(dynamics.layer_entropy_over_steps(log))
    assert "mean of per-sample means, response rows · no interval" in heat
    assert "dashed: end of the internal phase (layer 4, steps 1 to 10)" in heat
    assert "similarity and KL of layer 4" in caption_of(dynamics.training_dynamics(log, ["kl/above"]))


def test_bands_are_the_intervals_of_the_monitor(log):
    axes = dynamics.training_dynamics(log)
    reward, entropy = axes[0], axes[1]
    assert not reward.collections, "the trainer's log has no interval"
    (band,) = entropy.collections
    x, y = band.get_paths()[0].vertices.T
    for step, low, high in log.monitor[["step", "policy_entropy" + LOW, "policy_entropy" + HIGH]].itertuples(index=False):
        np.testing.assert_allclose([y[x == step].min(), y[x == step].max()], [low, high])
    left = trained.refinement(log)[1, 0]
    assert len(left.collections) == 3
    (gap,) = dynamics.stability(log)[1].collections
    assert len(gap.get_paths()) == 1, "a look without a value leaves the others in one band"


def test_perplexities_far_apart_have_a_logarithmic_axis(log):
    wild = replace(log, monitor=log.monitor.assign(perplexity=np.geomspace(2, 5e4, len(log.monitor))))
    axes = dynamics.training_dynamics(wild)
    assert axes[3].get_yscale() == "log"
    assert dynamics.training_dynamics(log)[3].get_yscale() == "linear"
    draw(axes)


def test_stability_leaves_out_looks_without_a_value(log, tmp_path):
    axes = dynamics.stability([log])
    assert curves(axes[0])["bupo"].shape == (9, 2)
    assert curves(axes[1])["bupo"][:, 0].tolist() == [0, 10, 15, 20, 25, 30, 35, 40]
    alone = open_training(write_training(tmp_path / "out", repeats=1))
    with pytest.raises(SelectionError, match="monitor_repeats of 2 or more"):
        dynamics.stability(alone)


# ---- layer by look


@pytest.mark.parametrize("which", ["log", "deep"])
def test_layer_entropy_is_layer_by_look(which, request):
    log = request.getfixturevalue(which)
    ax = dynamics.layer_entropy_over_steps(log)
    expected = log.monitor[[f"entropy/layer_{number}" for number in range(1, log.n_layers + 1)]].to_numpy().T
    np.testing.assert_allclose(cells(ax), expected)
    assert ax.get_ylim() == (0.5, log.n_layers + 0.5)  # a layer lies at its number
    assert numbers(ax.yaxis)[0] == "1"
    assert numbers(ax.yaxis)[-1] == str(log.n_layers)
    assert numbers(ax.xaxis)[0] == "0"
    assert numbers(ax.xaxis)[-1] == str(log.monitor["step"].iloc[-1])
    draw(ax)


def test_the_switch_lies_between_looks_and_the_trained_layer_is_outlined(log):
    ax = dynamics.layer_entropy_over_steps(log)
    assert switches(ax) == [2.5]  # looks at 0, 5, 10 | 15, ...
    box = ax.patches[0].get_bbox()
    assert (box.x0, box.x1, box.y0, box.y1) == (0.5, 2.5, 3.5, 4.5)  # the looks at 5 and 10, not that before training
    assert "whole policy" in [text.get_text() for text in ax.texts]


def test_change_of_entropy_is_centred_at_zero(log):
    ax = dynamics.layer_entropy_over_steps(log, change=True)
    np.testing.assert_array_equal(cells(ax)[:, 0], 0)
    np.testing.assert_allclose(cells(ax)[3, -1], log.monitor["entropy/layer_4"].iloc[-1] - log.monitor["entropy/layer_4"].iloc[0])
    norm = ax.collections[0].norm
    assert norm.vmin == -norm.vmax
    assert ax.collections[0].get_cmap().name == "RdBu_r"


def test_drift_leaves_open_what_has_not_moved(log):
    ax = dynamics.drift(log)
    grid = cells(ax)
    assert grid.shape == (13, 8)  # the embedding under 12 layers; no column of the start
    np.testing.assert_allclose(grid[0], log.monitor["drift/embedding"][1:])
    assert np.isnan(grid[5:, :2]).all()  # layers 5 to 12 in the internal phase
    assert np.isfinite(grid[:5]).all()
    assert numbers(ax.yaxis)[:2] == ["embedding", "1"]
    assert "hatched: not moved at all" in caption_of(ax)
    draw(ax)
    early = replace(log, monitor=log.monitor[:1])
    with pytest.raises(SelectionError, match="nothing can have moved yet"):
        dynamics.drift(early)


def test_refinement_shows_every_layer_above(log):
    axes = trained.refinement(log)
    assert axes.shape == (2, 2)
    for row, name in zip(axes, ("similarity", "kl"), strict=True):
        expected = log.monitor[[f"{name}/to_{number}" for number in range(5, 13)]].to_numpy().T
        np.testing.assert_allclose(cells(row[1]), expected)
        lines = curves(row[0])
        np.testing.assert_allclose(lines["mean of layers 5 to 12"][:, 1], expected.mean(axis=0))
        np.testing.assert_allclose(lines["layer 12, the last"][:, 1], expected[-1])
        assert switches(row[0]) == [10.5]
        assert switches(row[1]) == [2.5]
    assert "layer 4 against the layers above it" in caption_of(axes)
    draw(axes)


def test_refinement_needs_layers_above(baseline):
    with pytest.raises(SelectionError, match="it watched layer 12, which has none above"):
        trained.refinement(baseline)


def test_one_layer_above_needs_no_heat_map(tmp_path):
    log = open_training(write_training(tmp_path / "out", layer=11))
    axes = trained.refinement(log)
    assert axes.shape == (2, 1)
    np.testing.assert_allclose(curves(axes[0, 0])["layer 12"], log.monitor[["step", "similarity/to_12"]])
    draw(axes)


@pytest.mark.parametrize("which", ["log", "baseline", "deep"])
def test_modules_are_drawn_over_training(which, request):
    log = request.getfixturevalue(which)
    axes = trained.module_entropy(log)
    for (left, middle, right), module in zip(axes, ("attn", "ffn"), strict=True):
        (line,) = [line for name, line in curves(left).items() if name.endswith(f"layer {log.watched}")]
        np.testing.assert_allclose(line, log.monitor[["step", f"entropy_change/{module}_{log.watched}"]])
        assert len(left.collections) == 1, "its interval"
        for ax, name in ((middle, "entropy"), (right, "entropy_change")):
            expected = log.monitor[[f"{name}/{module}_{number}" for number in range(1, log.n_layers + 1)]].to_numpy().T
            np.testing.assert_allclose(cells(ax), expected)
        assert right.collections[0].norm.vmin == -right.collections[0].norm.vmax
    assert "bands: 95% bootstrap interval over problems" in caption_of(axes)
    draw(axes)


def test_one_look_and_given_axes(log):
    one = replace(log, monitor=log.monitor[:1], log=log.log[:1], internal=[(1, 1, 4)])
    draw(dynamics.layer_entropy_over_steps(one, change=True))
    draw(trained.refinement(one))
    figure = Figure(figsize=(6, 4), layout="constrained")
    ax = figure.subplots()
    assert dynamics.layer_entropy_over_steps(log, ax=ax) is ax
    draw(ax)


def test_several_internal_layers(log):
    ladder = replace(log, internal=[(1, 10, 4), (11, 20, 8)])
    (ax,) = dynamics.training_dynamics(ladder, ["reward"])
    assert switches(ax) == [10.5, 20.5]
    assert len({patch.get_facecolor() for patch in ax.patches}) == 2
    heat = dynamics.layer_entropy_over_steps(ladder)
    assert switches(heat) == [2.5, 4.5]
    assert {patch.get_bbox().y0 for patch in heat.patches} == {3.5, 7.5}


def test_every_figure_is_saved_the_same_twice(log, tmp_path):
    for drawn in (dynamics.training_dynamics, trained.refinement, trained.module_entropy, dynamics.drift):
        first, second = (save(drawn(log), tmp_path / f"{number}.svg").read_bytes() for number in (1, 2))
        assert first == second


def test_before_the_first_step(log):
    start = replace(log, monitor=log.monitor[:1], log=pd.DataFrame(), internal=[])
    axes = dynamics.training_dynamics(start, ["policy_entropy", "perplexity"])
    assert curves(axes[0])["bupo"].shape == (1, 2)
    draw(axes)
