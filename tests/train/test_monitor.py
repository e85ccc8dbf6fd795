"""What the monitor measures and keeps, against the same numbers taken by hand."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

import layerlens as ll
from layerlens.errors import RunError, TrainingError
from layerlens.models import causal_lm
from layerlens.results import open_run
from layerlens.results.training_log import CHANGE, HIGH, LOW, open_training
from layerlens.train import BuPOTrainer
from layerlens.train.monitor import Monitor
from layerlens.train.monitor_metrics import ANSWERED, final_policy_means
from layerlens.train.probe_means import with_intervals
from tests.support.thinking_runs import LAYERS, thinking_run
from tests.support.training import make_trainer

pytestmark = pytest.mark.filterwarnings("default")  # TRL's and accelerate's own


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> BuPOTrainer:
    out = tmp_path_factory.mktemp("training") / "bupo"
    trainer = make_trainer(out, internal_layer=2, internal_rollouts=1, monitor_every=2, monitor_problems=4, monitor_repeats=3)
    trainer.train()
    trainer.save_state()
    return trainer


@pytest.fixture(scope="module")
def folder(trained: BuPOTrainer) -> Path:
    return Path(trained.args.output_dir)


def monitor_of(trainer: BuPOTrainer) -> Monitor:
    [monitor] = [callback for callback in trainer.callback_handler.callbacks if isinstance(callback, Monitor)]
    return monitor


def test_the_trainers_log_holds_the_means_of_snapshots_without_intervals(folder: Path) -> None:
    entries = json.loads((folder / "trainer_state.json").read_text())["log_history"]
    logged = [(entry["step"], entry["monitor/kl/above"]) for entry in entries if "monitor/kl/above" in entry]
    monitor = open_training(folder).monitor
    assert logged == list(zip(monitor["step"], monitor["kl/above"], strict=True)), "each snapshot at its own step"
    assert [step for step, _ in logged] == [0, 1, 2]
    assert not any(name.endswith((LOW, HIGH, CHANGE)) for entry in entries for name in entry)


def test_means_and_intervals_of_a_snapshot_match_its_run(folder: Path) -> None:
    row = open_training(folder).monitor.iloc[-1]
    run = open_run(folder / "monitor" / "step-000002")
    entropy, change = run.mean("entropy"), run.mean("entropy_change")
    similarity, divergence = run.mean("similarity"), run.mean("kl_from_layer").sel(site="resid_post")
    for suffix, part in (("", "mean"), (LOW, "low"), (HIGH, "high")):
        for layer in range(1, 5):
            for module, site in (("layer", "resid_post"), ("attn", "attn_out"), ("ffn", "ffn_out")):
                assert row[f"entropy/{module}_{layer}{suffix}"] == pytest.approx(float(entropy[part].sel(layer=layer, site=site)))
                assert row[f"entropy_change/{module}_{layer}{suffix}"] == pytest.approx(float(change[part].sel(layer=layer, module=module)))
        for layer in (3, 4):
            assert row[f"similarity/to_{layer}{suffix}"] == pytest.approx(float(similarity[part].sel(layer=2, layer_to=layer)))
            assert row[f"kl/to_{layer}{suffix}"] == pytest.approx(float(divergence[part].sel(layer=layer)))
    assert row["kl/above"] == pytest.approx((row["kl/to_3"] + row["kl/to_4"]) / 2)


def test_change_since_the_start_is_the_difference_of_its_runs(folder: Path) -> None:
    row = open_training(folder).monitor.iloc[-1]
    runs = [open_run(folder / "monitor" / name) for name in ("step-000000", "step-000002")]
    change = ll.difference(*runs)
    assert change.attrs["paired"]
    for suffix, part in (("", "mean"), (LOW, "low"), (HIGH, "high")):
        for layer in range(1, 5):
            expected = float(change[part].sel(layer=layer, site="resid_post"))
            assert row[f"entropy/layer_{layer}{CHANGE}{suffix}"] == pytest.approx(expected, abs=1e-9)
    first = open_training(folder).monitor.iloc[0]
    assert first[f"entropy/layer_1{CHANGE}"] == first[f"kl/above{CHANGE}{HIGH}"] == 0


def test_every_mean_over_the_probe_has_an_interval_around_it(folder: Path) -> None:
    row = json.loads((folder / "monitor" / "summary.jsonl").read_text().splitlines()[-1])
    means = [name for name in row if name != "step" and not name.startswith("drift/") and not name.endswith((LOW, HIGH, CHANGE))]
    assert {"policy_entropy", "perplexity", "response_length", "stability/answers", "stability/entropy_path", "kl/above"} <= set(means)
    for name in means:
        assert row[name + LOW] <= row[name] <= row[name + HIGH], name
    assert sum(row[name + LOW] < row[name + HIGH] for name in means) > len(means) // 2
    assert not any(name.startswith("drift/") and name.endswith((LOW, HIGH)) for name in row)


def test_one_probe_problem_has_no_interval(tmp_path: Path) -> None:
    make_trainer(tmp_path, internal_layer=2, internal_rollouts=1, max_steps=1, monitor_every=1, monitor_problems=1).train()
    row = json.loads((tmp_path / "monitor" / "summary.jsonl").read_text().splitlines()[0])
    assert row["entropy/layer_1"] > 0
    assert row["entropy/layer_1" + LOW] is row["response_length" + HIGH] is None


def test_snapshots_are_taken_when_a_phase_ends_and_leave_the_weights_alone(tmp_path: Path) -> None:
    settings = {"internal_schedule": "1:1,2:2", "num_iterations": 2, "max_steps": 8}
    watched = make_trainer(tmp_path / "a", monitor_every=5, monitor_problems=2, monitor_repeats=2, monitor_layer=3, **settings)
    watched.train()
    alone = make_trainer(tmp_path / "b", **settings)
    alone.train()
    monitor = open_training(tmp_path / "a").monitor
    assert monitor["step"].tolist() == [0, 2, 5, 6, 8]
    assert {name for name in monitor if name.startswith("kl/to_") and name[-1].isdigit()} == {"kl/to_4"}
    for (name, a), b in zip(watched.model.named_parameters(), alone.model.parameters(), strict=True):
        assert torch.equal(a, b), name


def test_a_resumed_run_keeps_its_probe_texts(tmp_path: Path) -> None:
    settings = {"internal_layer": 2, "internal_rollouts": 1, "monitor_every": 4, "monitor_problems": 2}
    settings |= {"save_strategy": "steps", "save_steps": 1}
    make_trainer(tmp_path, max_steps=1, **settings).train()
    probe = tmp_path / "monitor" / "probe.json"
    kept = probe.read_text()
    more = make_trainer(tmp_path, max_steps=2, **settings | {"monitor_problems": 3})
    with pytest.raises(TrainingError, match="answers to 2 problems, which are not the 3 probe problems of this run"):
        more.train(resume_from_checkpoint=True)
    other = make_trainer(tmp_path, max_steps=2, **settings)
    monitor_of(other).prompts.reverse()
    with pytest.raises(TrainingError, match="answers to 2 problems, which are not the 2 probe problems of this run"):
        other.train(resume_from_checkpoint=True)
    start = tmp_path / "monitor" / "start.pt"
    whole = start.read_bytes()
    start.write_bytes(whole[:-100])
    with pytest.raises(TrainingError, match=r"start\.pt is damaged \(.*: set monitor_every to 0, or begin the training anew"):
        make_trainer(tmp_path, max_steps=2, **settings).train(resume_from_checkpoint=True)
    start.write_bytes(whole)
    summary = tmp_path / "monitor" / "summary.jsonl"
    rows = summary.read_bytes()
    summary.write_bytes(b"\x80" + rows)
    unmoved = make_trainer(tmp_path, max_steps=2, **settings)
    with pytest.raises(RunError, match=r"summary\.jsonl is damaged"):
        unmoved.train(resume_from_checkpoint=True)
    assert unmoved.state.global_step == 1, "it is told before a step is taken"
    summary.write_bytes(rows)
    make_trainer(tmp_path, max_steps=2, **settings).train(resume_from_checkpoint=True)
    assert probe.read_text() == kept


def test_drift_of_lora_is_that_of_the_products_of_its_factors(tmp_path: Path) -> None:
    from peft import LoraConfig

    names = ("self_attn.q_proj", "mlp.up_proj")
    lora = LoraConfig(r=2, target_modules=[name.split(".")[1] for name in names])
    trainer = make_trainer(tmp_path, internal_layer=2, internal_rollouts=-1, monitor_every=2, monitor_problems=2, peft_config=lora)
    blocks = causal_lm(trainer.model).model.layers
    start = [sum(float(w.double().square().sum()) for n, w in block.named_parameters() if ".lora_" not in n) ** 0.5 for block in blocks]
    trainer.train()
    row = open_training(tmp_path).monitor.iloc[-1]
    for number, block in enumerate(blocks, 1):
        added = [block.get_submodule(name).get_delta_weight("default").detach() for name in names]
        moved = sum(float(change.double().square().sum()) for change in added) ** 0.5
        assert (moved > 0) == (number <= 2)
        assert row[f"drift/layer_{number}"] == pytest.approx(moved / start[number - 1], rel=1e-5)


def test_divergence_and_settling_of_a_snapshot_match_a_run_of_the_trained_model(trained: BuPOTrainer, folder: Path) -> None:
    row = open_training(folder).monitor.iloc[-1]
    model = ll.LensModel.wrap(trained.model, trained.processing_class)
    run = ll.analyze(model, monitor_of(trained).probe, norm="final", sites="resid_post", metrics=("entropy", "js_to_final"))
    js, depth, entropy = (run.mean(name) for name in ("js_to_final", "settling_depth", "entropy"))
    assert len(np.unique(js["mean"].values.round(4))) == 4, "layers that are swapped are found"
    for suffix, part in (("", "mean"), (LOW, "low"), (HIGH, "high")):
        for layer in range(1, 5):
            expected = float(js[part].sel(layer=layer, site="resid_post"))
            assert row[f"js_to_final/layer_{layer}{suffix}"] == pytest.approx(expected, abs=1e-6)
        assert row[f"settling_depth{suffix}"] == pytest.approx(float(depth[part]))
        assert row[f"policy_entropy{suffix}"] == pytest.approx(float(entropy[part].sel(layer=4, site="resid_post")))
    assert not any(name.startswith("settling_depth/") for name in row.index if not name.endswith((LOW, HIGH, CHANGE)))


def test_segments_are_watched_if_the_probe_thinks() -> None:
    run = thinking_run(metrics=("entropy", "logp_next", "js_to_final"))
    means = final_policy_means(run)
    of_answers = {name for name in means if name.endswith(("/thinking", "/answer"))}
    assert of_answers == {f"{name}/{segment}" for name in ("policy_entropy", "settling_depth") for segment in ("thinking", "answer")}
    row = with_intervals(means, {})
    for segment in ANSWERED:
        entropy = run.mean("entropy", segment=segment)["mean"].sel(layer=LAYERS, site="resid_post")
        assert row[f"policy_entropy/{segment}"] == pytest.approx(float(entropy))
        depth = run.mean("settling_depth", segment=segment)["mean"]
        assert row[f"settling_depth/{segment}"] == pytest.approx(float(depth))
    for name in ("policy_entropy", "settling_depth"):
        assert row[f"{name}/thinking"] != pytest.approx(row[f"{name}/answer"]), "segments that are swapped are found"
