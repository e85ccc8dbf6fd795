from __future__ import annotations

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from layerlens import plots
from layerlens.errors import SelectionError
from layerlens.plots import save
from layerlens.plots.kit.steps import PHASE_END
from layerlens.results.training_log import HIGH, LOW, open_training
from tests.support.plots import (
    caption_of,
    curves,
    draw,
    figure_of,
    phase_ends,
)
from tests.support.training_folders import write_training


def test_training_dynamics_draw_the_log_and_the_monitor(log):
    axes = plots.training_dynamics(log, smooth=1)
    for ax, (frame, name) in zip(
        axes,
        [(log.log, "reward"), (log.monitor, "policy_entropy"), (log.monitor, "response_length"), (log.monitor, "log_perplexity")],
        strict=True,
    ):
        np.testing.assert_allclose(curves(ax)["bupo"], frame[["step", name]].to_numpy())
    draw(axes)
    assert [ax.get_xlabel() for ax in axes] == ["", "", "optimizer step", "optimizer step"]
    assert "[tokens]" in axes[2].get_ylabel()


def test_training_dynamics_draw_the_smoothed_reward_over_the_raw_one_and_say_so(log):
    (ax,) = plots.training_dynamics(log, ["reward"], smooth=5)
    raw, thick = [line for line in ax.lines if line.get_gid() != PHASE_END]
    np.testing.assert_allclose(raw.get_ydata(), log.log["reward"])
    assert thick.get_linewidth() > 2 * raw.get_linewidth()
    np.testing.assert_allclose(thick.get_ydata()[20], log.log["reward"][18:23].mean())
    assert "thick: the trainer's log, centred mean of 5 entries within a phase (faint: as logged)" in caption_of(ax)
    with pytest.raises(SelectionError, match="smooth counts log entries"):
        plots.training_dynamics(log, smooth=0)


def test_training_dynamics_shade_the_internal_phase_and_mark_its_end(log):
    axes = plots.training_dynamics(log)
    for ax in axes:
        assert phase_ends(ax) == [10.5]
        (span,) = ax.patches
        assert (span.get_x(), span.get_x() + span.get_width()) == (0, 10.5)
    texts = [text.get_text() for text in figure_of(axes).legends[0].get_texts()]
    assert texts == ["bupo", "internal: layer 4, steps 1 to 10"]


def test_training_dynamics_tell_runs_apart_without_colour(log, baseline, deep):
    axes = plots.training_dynamics([log, baseline, deep])
    texts = [text.get_text() for text in figure_of(axes).legends[0].get_texts()]
    assert texts == ["bupo (internal: layer 4, steps 1 to 10)", "grpo", "deep (internal: layer 6, steps 1 to 30)"]
    lines = [line for line in axes[1].lines if line.get_gid() != PHASE_END]
    assert len({(line.get_linestyle(), line.get_marker()) for line in lines}) == 3
    marks = [line for line in axes[1].lines if line.get_gid() == PHASE_END]
    assert [(mark.get_xdata()[0], mark.get_linestyle()) for mark in marks] == [
        (10.5, lines[0].get_linestyle()),
        (30.5, lines[2].get_linestyle()),
    ]
    draw(axes)


def test_training_dynamics_of_a_baseline_have_no_phase(baseline):
    for ax in plots.training_dynamics(baseline):
        assert phase_ends(ax) == []
        assert not ax.patches


def test_training_dynamics_of_a_phase_that_lasts_have_no_end(tmp_path):
    log = open_training(write_training(tmp_path / "out", internal=40))
    (ax,) = plots.training_dynamics(log, ["reward"])
    assert phase_ends(ax) == []
    assert len(ax.patches) == 1


def test_training_dynamics_draw_any_column_and_refuse_an_unknown_one(log):
    axes = plots.training_dynamics(log, ["kl/above", "entropy/layer_4", "completions/mean_length"])
    np.testing.assert_allclose(curves(axes[1])["bupo"][:, 1], log.monitor["entropy/layer_4"])
    with pytest.raises(SelectionError, match=r"no 'speed'.*It has .*policy_entropy"):
        plots.training_dynamics(log, ["speed"])
    with pytest.raises(SelectionError, match="no metric"):
        plots.training_dynamics(log, [])
    with pytest.raises(SelectionError, match="no training log"):
        plots.training_dynamics([])


def test_captions_of_training_name_model_norm_probe_rows_and_interval(log):
    caption = caption_of(plots.training_dynamics(log))
    said = ("tiny-qwen3", "norm: none", "logit lens", "probe of 16 problems", "final policy under the model's final norm")
    for words in (*said, "bands: 95% bootstrap interval over problems"):
        assert words in caption
    without = replace(log, monitor=log.monitor.drop(columns=[name for name in log.monitor if name.endswith((LOW, HIGH))]))
    assert "no interval" in caption_of(plots.training_dynamics(without))
    heat = caption_of(plots.layer_entropy_over_steps(log))
    assert "mean of per-sample means, response rows · no interval" in heat
    assert "dashed: end of the internal phase (layer 4, steps 1 to 10)" in heat
    assert "similarity and KL of layer 4" in caption_of(plots.training_dynamics(log, ["kl/above"]))


def test_bands_are_the_intervals_of_the_monitor(log):
    axes = plots.training_dynamics(log)
    reward, entropy = axes[0], axes[1]
    assert not reward.collections, "the trainer's log has no interval"
    (band,) = entropy.collections
    x, y = band.get_paths()[0].vertices.T
    for step, low, high in log.monitor[["step", "policy_entropy" + LOW, "policy_entropy" + HIGH]].itertuples(index=False):
        np.testing.assert_allclose([y[x == step].min(), y[x == step].max()], [low, high])
    left = plots.refinement(log)[1, 0]
    assert len(left.collections) == 3
    (gap,) = plots.stability(log)[1].collections
    assert len(gap.get_paths()) == 1, "a look without a value leaves the others in one band"


def test_training_dynamics_draws_perplexity_in_nats_per_token(log):
    (ax,) = plots.training_dynamics(log, ["perplexity"])
    np.testing.assert_allclose(curves(ax)["bupo"][:, 1], np.log(log.monitor["perplexity"]))
    assert ax.get_ylabel().replace("\n", " ") == "log perplexity of the final policy [nats per token]"


def test_training_dynamics_of_changes_has_paired_bands(log):
    axes = plots.training_dynamics(log, ["policy_entropy", "perplexity"], change=True)
    for ax, name in zip(axes, ("policy_entropy", "log_perplexity"), strict=True):
        np.testing.assert_allclose(curves(ax)["bupo"][:, 1], log.monitor[name] - log.monitor[name].iloc[0], atol=1e-12)
        band = ax.collections[0].get_paths()[0].vertices[:, 1]
        assert band.max() == pytest.approx(log.monitor[f"{name}/change/high"].max())
    assert "change since step 0" in caption_of(axes)
    assert "over paired problems" in caption_of(axes)
    with pytest.raises(SelectionError, match="no change of 'reward'"):
        plots.training_dynamics(log, ["reward"], change=True)


def test_training_dynamics_before_the_first_step(log):
    start = replace(log, monitor=log.monitor[:1], log=pd.DataFrame(), internal=[])
    axes = plots.training_dynamics(start, ["policy_entropy", "perplexity"])
    assert curves(axes[0])["bupo"].shape == (1, 2)
    draw(axes)


def test_several_internal_phases_are_marked(log):
    ladder = replace(log, internal=[(1, 10, 4), (11, 20, 8)])
    (ax,) = plots.training_dynamics(ladder, ["reward"])
    assert phase_ends(ax) == [10.5, 20.5]
    assert len({patch.get_facecolor() for patch in ax.patches}) == 2
    heat = plots.layer_entropy_over_steps(ladder)
    assert phase_ends(heat) == [2.5, 4.5]
    assert {patch.get_bbox().y0 for patch in heat.patches} == {3.5, 7.5}


def test_training_figures_are_saved_the_same_twice(log, tmp_path):
    for drawn in (plots.training_dynamics, plots.refinement, plots.module_entropy, plots.drift):
        first, second = (save(drawn(log), tmp_path / f"{number}.svg").read_bytes() for number in (1, 2))
        assert first == second
