"""What the monitor measures and keeps, against the same numbers taken by hand."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from layerlens.results import open_run
from layerlens.results.training import HIGH, LOW, open_training
from layerlens.train.readings import per_pair, per_problem
from layerlens.train.whole import hollow_copy
from tests.tiny import tiny_model
from tests.train.harness import make_trainer

pytestmark = pytest.mark.filterwarnings("default")  # TRL's and accelerate's own


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("training") / "bupo"
    trainer = make_trainer(out, internal_layer=2, internal_steps=1, monitor_steps=2, monitor_problems=4, monitor_repeats=3)
    trainer.train()
    trainer.save_state()
    return out


def test_the_trainers_log_holds_the_means_alone(folder: Path) -> None:
    log, monitor = open_training(folder).log, open_training(folder).monitor
    assert log["monitor/kl/above"].tolist()[0] == monitor["kl/above"].tolist()[0]
    assert not any(name.endswith((LOW, HIGH)) for name in log.columns)


def test_means_and_intervals_are_those_of_the_run(folder: Path) -> None:
    row = open_training(folder).monitor.iloc[-1]
    run = open_run(folder / "monitor" / "step-000002")
    entropy, change = run.mean("entropy"), run.mean("entropy_change")
    similarity, divergence = run.mean("similarity"), run.mean("kl_from_layer").sel(site="resid_post")
    for suffix, part in (("", "mean"), (LOW, "low"), (HIGH, "high")):
        for layer in range(1, 5):
            assert row[f"entropy/layer_{layer}{suffix}"] == pytest.approx(float(entropy[part].sel(layer=layer, site="resid_post")))
            assert row[f"entropy_change/ffn_{layer}{suffix}"] == pytest.approx(float(change[part].sel(layer=layer, module="ffn")))
        for layer in (3, 4):
            assert row[f"similarity/to_{layer}{suffix}"] == pytest.approx(float(similarity[part].sel(layer=2, layer_to=layer)))
            assert row[f"kl/to_{layer}{suffix}"] == pytest.approx(float(divergence[part].sel(layer=layer)))
    assert row["kl/above"] == pytest.approx((row["kl/to_3"] + row["kl/to_4"]) / 2)


def test_every_mean_over_the_probe_has_an_interval_around_it(folder: Path) -> None:
    row = json.loads((folder / "monitor" / "summary.jsonl").read_text().splitlines()[-1])
    means = [name for name in row if name != "step" and not name.startswith("drift/") and not name.endswith((LOW, HIGH))]
    assert {"policy_entropy", "perplexity", "response_length", "stability/answers", "stability/entropy_path", "kl/above"} <= set(means)
    for name in means:
        assert row[name + LOW] <= row[name] <= row[name + HIGH], name
    assert sum(row[name + LOW] < row[name + HIGH] for name in means) > len(means) // 2
    assert not any(name.startswith("drift/") and name.endswith((LOW, HIGH)) for name in row)


def test_one_probe_problem_has_no_interval(tmp_path: Path) -> None:
    make_trainer(tmp_path, internal_layer=2, internal_steps=1, max_steps=1, monitor_steps=1, monitor_problems=1).train()
    row = json.loads((tmp_path / "monitor" / "summary.jsonl").read_text().splitlines()[0])
    assert row["entropy/layer_1"] > 0
    assert row["entropy/layer_1" + LOW] is row["response_length" + HIGH] is None


@given(st.integers(1, 5), st.integers(2, 4), st.integers(0, 99))
def test_means_over_answers_and_pairs_are_the_plain_ones(problems: int, repeats: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    values = rng.normal(size=problems * repeats)
    groups = np.arange(len(values)).reshape(repeats, problems).T
    assert per_problem("x", groups, values)["x"] == pytest.approx(values.mean())
    table = rng.normal(size=(len(values), len(values)))
    table[rng.random(table.shape) < 0.3] = np.nan
    pairs = [table[a, b] for group in groups for place, a in enumerate(group) for b in group[place + 1 :]]
    known = [value for value in pairs if not np.isnan(value)]
    found = per_pair("x", groups, lambda a, b: float(table[a, b]))["x"]
    assert found == (pytest.approx(np.mean(known)) if known else None)


@pytest.mark.parametrize("tied", [True, False])
def test_a_hollow_copy_filled_again_is_the_model(tied: bool) -> None:
    model = tiny_model("qwen3", tied=tied)
    hollow = hollow_copy(model)
    assert all(weight.is_meta for weight in hollow.parameters())
    assert (hollow.lm_head.weight is hollow.model.embed_tokens.weight) == tied
    hollow.load_state_dict(model.state_dict(), assign=True)
    hollow.tie_weights()
    ids = torch.arange(8, 20)[None]
    assert torch.equal(hollow(ids).logits, model(ids).logits)
