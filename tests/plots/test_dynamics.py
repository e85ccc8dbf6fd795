from __future__ import annotations

import json
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from matplotlib.figure import Figure

from layerlens.errors import RunError, SelectionError
from layerlens.plots import dynamics, save
from layerlens.plots.differences import UNSURE, difference_heatmap
from layerlens.plots.dynamics import SWITCH
from layerlens.results import Run, RunFolder, make_manifest
from layerlens.results.training import internal_phases, open_training
from tests.plots.kit import caption_of, cells, draw, figure_of, numbers, part, rise_and_fall, with_values


def write_training(
    folder: Path, *, layers: int = 12, layer: int | None = 4, internal: int = 10, steps: int = 40, every: int = 5, repeats: int = 4,
    logged: int = 1, seed: int = 0, checkpoint: bool = False, monitor: bool = True,
) -> Path:  # fmt: skip
    """An output folder as the trainer and its monitor leave it: `layer` is trained for `internal` steps, then all layers."""
    rng = np.random.default_rng(seed)
    depth = np.arange(1, layers + 1) / layers
    watched = layer or layers
    entries: list[dict[str, Any]] = []
    phase = np.where(np.arange(1, steps + 1) <= internal, float(layer or 0), 0.0)
    for step in range(logged, steps + 1, logged):
        gain = 1 / (1 + np.exp(-(step - 0.45 * steps) / (0.12 * steps)))
        entries.append({
            "step": step, "reward": float(np.clip(0.25 + 0.6 * gain + 0.06 * rng.standard_normal(), 0, 1)), "loss": 0.0,
            "entropy": 0.4 - 0.3 * gain, "completions/mean_length": 90 - 30 * gain + 3 * rng.standard_normal(),
            "bupo/internal_layer": float(phase[step - logged : step].mean()),
        })  # fmt: skip
    state = {"global_step": steps, "log_history": [*entries, {"step": steps, "eval_reward": 0.9}, {"step": steps, "train_runtime": 60.0}]}
    place = folder / f"checkpoint-{steps}" if checkpoint else folder
    place.mkdir(parents=True)
    (place / "trainer_state.json").write_text(json.dumps(state))
    if monitor:
        rows = []
        for step in sorted({*range(0, steps + 1, every), steps}):
            done = step / steps
            inner, outer = min(step, internal) / max(internal, 1), max(step - internal, 0) / max(steps - internal, 1)
            entropy = (
                7 * (1 - depth**3) + 0.3 * rng.standard_normal(layers) * 0.1 - 2.0 * inner * np.exp(-((depth - watched / layers) ** 2) * 40)
            )
            row: dict[str, float | None] = {"step": step}
            row |= {f"entropy/layer_{number}": float(max(value, 0.02)) for number, value in enumerate(entropy - outer * depth, 1)}
            for number in range(1, layers + 1):
                row |= {f"entropy_change/{module}_{number}": 0.1 for module in ("attn", "ffn")}
                if number > watched:
                    row[f"similarity/to_{number}"] = float(np.exp(-2 * (depth[number - 1] - watched / layers)) * (0.7 + 0.2 * inner))
                    row[f"kl/to_{number}"] = float(6 * (depth[number - 1] - watched / layers) * (1 - 0.3 * inner + 0.2 * outer) + 0.1)
                moved = inner * (number <= watched) * 0.02 if layer else 0.0
                row[f"drift/layer_{number}"] = float(moved + outer * 0.05 * (1.2 - depth[number - 1]))
            if watched < layers:
                for name in ("similarity", "kl"):
                    row[f"{name}/above"] = float(np.mean([row[f"{name}/to_{number}"] for number in range(watched + 1, layers + 1)]))
            row |= {"drift/embedding": 0.01 * done, "policy_entropy": 0.5 + 0.4 * inner * (layer is not None) - 0.6 * outer * 0.6}
            row |= {
                "perplexity": float(1.4 + 1.2 * inner * (layer is not None) - 0.6 * outer),
                "response_length": 95 - 30 * done + rng.normal(),
            }
            if repeats > 1:
                row |= {
                    "stability/answers": float(np.clip(0.4 + 0.5 * done, 0, 1)),
                    "stability/entropy_path": None if step == every else 0.3,
                }
            rows.append(row)
            run = make_manifest(
                {"name": "tiny-qwen3", "n_layers": layers},
                {"norm": "none", "temperature": 1.0, "kl_from_layer": watched},
                {"count": 16, "digest": "0"},
            )
            RunFolder.create(folder / "monitor" / f"step-{step:06d}", run)
        (folder / "monitor" / "summary.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


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


def entries(*values: float, logged: int = 1) -> pd.DataFrame:
    return pd.DataFrame({"step": logged * np.arange(1, len(values) + 1), "bupo/internal_layer": values})


# ---- reading a training folder


def test_a_training_folder_is_read(log):
    assert (log.name, log.model, log.norm, log.n_layers, log.problems, log.watched) == ("bupo", "tiny-qwen3", "none", 12, 16, 4)
    assert log.monitor["step"].tolist() == list(range(0, 41, 5))
    assert log.log["step"].tolist() == list(range(1, 41))  # neither evaluation nor summary
    assert log.internal == [(1, 10, 4)]
    assert np.isnan(log.monitor["stability/entropy_path"][1])


def test_the_newest_state_is_read_of_an_unfinished_training(tmp_path):
    out = write_training(tmp_path / "out", steps=20, checkpoint=True)
    write_training(tmp_path / "later", steps=30, checkpoint=True, monitor=False)
    (tmp_path / "later" / "checkpoint-30").rename(out / "checkpoint-30")
    assert len(open_training(out).log) == 30


def test_a_training_without_log_or_without_monitor(tmp_path):
    logged = open_training(write_training(tmp_path / "a", monitor=False))
    assert logged.monitor.empty
    assert (logged.model, logged.norm) == ("a", None)
    with pytest.raises(SelectionError, match="the training a has no monitor: train with monitor_steps"):
        dynamics.drift(logged)
    with pytest.raises(SelectionError, match="no 'policy_entropy'; it has no monitor"):
        dynamics.training_dynamics(logged)
    (write_training(tmp_path / "b") / "trainer_state.json").unlink()
    watched = open_training(tmp_path / "b")
    assert (watched.log.empty, watched.internal) == (True, [])
    ax = dynamics.layer_entropy_over_steps(watched)
    assert "phases not known: no log yet" in caption_of(ax)
    with pytest.raises(SelectionError, match="no 'reward'; it has no log yet"):
        dynamics.training_dynamics(watched)


def test_what_is_missing_or_damaged_is_named(tmp_path):
    with pytest.raises(RunError, match="no such training folder"):
        open_training(tmp_path / "nowhere")
    with pytest.raises(RunError, match=r"holds neither monitor/summary.jsonl nor a trainer_state.json"):
        open_training(tmp_path)
    out = write_training(tmp_path / "out")
    summary = out / "monitor" / "summary.jsonl"
    whole = summary.read_text()
    summary.write_text(whole[:-20])
    with pytest.raises(RunError, match=r"summary.jsonl is damaged"):
        open_training(out)
    summary.write_text(whole)
    (out / "trainer_state.json").write_text("{}")
    with pytest.raises(RunError, match="is no trainer state"):
        open_training(out)
    (out / "trainer_state.json").write_text("{")
    with pytest.raises(RunError, match="can not be read"):
        open_training(out)
    (out / "trainer_state.json").unlink()
    for file in out.rglob("run.json"):
        file.unlink()
    with pytest.raises(RunError, match=r"no step-\* folder with a run.json"):
        open_training(out)


@pytest.mark.parametrize(
    ("log", "phases"),
    [
        (entries(0, 0, 0), []),
        (entries(4, 4, 0), [(1, 2, 4)]),
        (entries(4, 8, 8, 8, 0), [(1, 1, 4), (2, 4, 8)]),
        (entries(6, 6), [(1, 2, 6)]),
        (entries(6, 3, 0, logged=10), [(1, 15, 6)]),  # a switch in the middle of the second window
        (entries(6, 0.6, 0, logged=10), [(1, 11, 6)]),
        (entries(4, 6.8, 8, 0, logged=10), [(1, 13, 4), (14, 30, 8)]),
        (pd.DataFrame({"step": [1, 2], "reward": [0.1, 0.2]}), []),
        (pd.DataFrame(), []),
    ],
)
def test_phases_are_read_off_the_log(log, phases):
    assert internal_phases(log) == phases


def test_a_first_entry_that_spans_the_switch_needs_the_layer():
    assert internal_phases(entries(2.4, 0, logged=10), first_layer=6) == [(1, 4, 6)]
    with pytest.raises(RunError, match="train with logging_steps=1"):
        internal_phases(entries(2.4, 0, logged=10))


@given(st.lists(st.tuples(st.integers(1, 9), st.integers(1, 5)), max_size=3), st.integers(0, 5))
def test_phases_come_back_from_a_log_of_every_step(phases, rest):
    layers = [layer for layer, steps in phases for _ in range(steps)] + [0] * rest
    back = internal_phases(entries(*map(float, layers)))
    assert [layer for first, last, layer in back for _ in range(first, last + 1)] == [layer for layer in layers if layer]
    assert all(a[2] != b[2] and a[1] + 1 == b[0] for a, b in pairwise(back))


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
    np.testing.assert_array_equal(dynamics.smoothed(np.arange(1, 21), values, 5, [(1, 10, 4)]), values)
    assert 0 < dynamics.smoothed(np.arange(1, 21), values, 5)[9] < 1


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
    for said in ("tiny-qwen3", "norm: none", "probe of 16 problems", "full policy under its own final norm", "no interval"):
        assert said in caption
    assert "mean of per-sample means, response rows · no interval" in caption_of(dynamics.layer_entropy_over_steps(log))


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
    axes = dynamics.refinement(log)
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
        dynamics.refinement(baseline)


def test_one_look_and_given_axes(log):
    one = replace(log, monitor=log.monitor[:1], log=log.log[:1], internal=[(1, 1, 4)])
    draw(dynamics.layer_entropy_over_steps(one, change=True))
    draw(dynamics.refinement(one))
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


# ---- before and after


@pytest.fixture(scope="module")
def before():
    return rise_and_fall(12, name="tiny-qwen3")


def shifted(run: Run, at_layer: int, by: float, wobble: float = 0.05) -> Run:
    """The run with entropies moved at one layer, and up and down from sample to sample at all."""
    moved = run.data["entropy"].values.copy()
    moved += wobble * np.where(run.data["sample"].values % 2, 1, -1)[:, None, None]
    moved[:, at_layer - 1] += by
    return with_values(run, "entropy", moved.astype(np.float32))


def test_the_difference_of_means_is_after_minus_before(before):
    after = shifted(before, 4, -0.8)
    ax = difference_heatmap(before, after)
    expected = after.mean("entropy", resamples=1)["mean"] - before.mean("entropy", resamples=1)["mean"]
    np.testing.assert_allclose(cells(ax), expected.values)
    assert numbers(ax.xaxis) == before.sites
    norm = ax.collections[0].norm
    assert norm.vmin == -norm.vmax
    dots = next(line for line in ax.lines if line.get_gid() == UNSURE)
    assert set(dots.get_ydata()) == set(range(12)) - {3}  # every layer but the one that has moved
    caption = caption_of(ax)
    assert "after − before · dots: the 95% bootstrap interval over paired samples holds 0" in caption
    assert "norm: none · 12 samples each" in caption
    draw(ax)


def test_pairs_are_surer_than_unpaired_samples(before):
    after = shifted(before, 4, -0.8, wobble=0.0)
    assert not any(line.get_gid() == UNSURE and 3 in line.get_ydata() for line in difference_heatmap(before, after).lines)
    other = Run(after.data.assign_coords(token_id=after.data["token_id"] + 1), after.manifest)
    assert "over samples of each run" in caption_of(difference_heatmap(before, other))


def test_one_sample_has_no_interval():
    run = rise_and_fall(6, samples=1)
    ax = difference_heatmap(run, shifted(run, 2, 0.5))
    assert "1 sample: no interval" in caption_of(ax)
    assert not ax.lines


def test_the_difference_of_one_sample_is_layer_by_token(before):
    after = shifted(before, 4, -0.8)
    ax = difference_heatmap(before, after, sample="s2", site="ffn_out")
    old, new = (run.sample("s2")["entropy"].sel(site="ffn_out").values.T for run in (before, after))
    np.testing.assert_allclose(cells(ax), new.astype(float) - old.astype(float))
    assert len(numbers(ax.xaxis)) == old.shape[1]
    assert "no interval" in caption_of(ax)
    draw(ax)


@pytest.mark.parametrize("metric", ["entropy_change", "logp_next", "kl_to_final", "agrees"])
def test_differences_of_other_metrics(before, metric):
    after = shifted(before, 4, -0.8)
    for sample in (None, 0):
        ax = difference_heatmap(before, after, metric, sample)
        assert ax.collections[0].norm.vmin < 0 < ax.collections[0].norm.vmax
        draw(ax)


def test_runs_that_do_not_compare_are_refused(before):
    with pytest.raises(SelectionError, match="norm is 'none' before and 'final' after"):
        difference_heatmap(before, rise_and_fall(12, norm="final"))
    with pytest.raises(SelectionError, match="12 of 12 before and 6 of 6 after"):
        difference_heatmap(before, rise_and_fall(6))
    with pytest.raises(SelectionError, match=r"sample s0 has other tokens before \(20\) and after \(30\)"):
        difference_heatmap(before, rise_and_fall(12, tokens=30), sample=0)
    other = Run(before.data.assign_coords(token_id=before.data["token_id"] + 1), before.manifest)
    with pytest.raises(SelectionError, match="from row 0 on"):
        difference_heatmap(before, other, sample=0)
    with pytest.raises(SelectionError, match="draw metric='logp_next'"):
        difference_heatmap(before, before, "perplexity")
    with pytest.raises(SelectionError, match="leave out sample="):
        difference_heatmap(before, before, sample=0, over="token")
    with pytest.raises(SelectionError, match="no site 'ffn_in' in both runs"):
        difference_heatmap(before, part(before, site=["resid_post"]), site="ffn_in")


def test_looks_of_a_training_are_named_by_their_folders(before, tmp_path):
    early, late = (Run(run.data, run.manifest, tmp_path / name) for run, name in ((before, "step-000000"), (before, "step-000040")))
    assert difference_heatmap(early, late).get_title("left") == "tiny-qwen3 · step-000040 − step-000000"


def test_every_figure_is_saved_the_same_twice(log, before, tmp_path):
    for drawn in (dynamics.training_dynamics, dynamics.refinement, dynamics.drift):
        first, second = (save(drawn(log), tmp_path / f"{number}.svg").read_bytes() for number in (1, 2))
        assert first == second


def test_before_the_first_step(log):
    start = replace(log, monitor=log.monitor[:1], log=pd.DataFrame(), internal=[])
    axes = dynamics.training_dynamics(start, ["policy_entropy", "perplexity"])
    assert curves(axes[0])["bupo"].shape == (1, 2)
    draw(axes)
