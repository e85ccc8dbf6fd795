"""Rounds of growing draws: when they end and why, that they survive kills and sharing, and that their intervals hold what they say."""

from __future__ import annotations

import importlib.util
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any
from unittest import mock

import numpy as np
import pytest

import layerlens as ll
from layerlens.analysis import stopping
from layerlens.analysis.stopping import run_until_stopped, share_of_draws, stopping_verdict
from layerlens.errors import SelectionError
from layerlens.results import Run
from tests.analysis.test_row_sample import thinned
from tests.support.kills import assert_same_run, finish, prompts, run_through_kills, run_whole, start_workers
from tests.support.processes import ROOT
from tests.support.synthetic_runs import make_run
from tests.support.tiny_models import random_ids, tiny_model, tiny_tokenizer

OPTIONS: dict[str, Any] = {"generate": ll.Generation(12, seed=3), "batch_tokens": 64}


def fill_in_rounds(lens: ll.LensModel, out: Path | None) -> Run:
    """Rounds of 2, 4, 8 and 16 tokens per sample, as no draw is precise enough."""
    with mock.patch.multiple(stopping, FIRST=2, SMALL_GAIN=0.0):
        return ll.analyze(lens, prompts(6), out=out, tokens_per_sample="auto", precision=1e-3, **OPTIONS)


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, float]:
    out = tmp_path_factory.mktemp("whole") / "run"
    return out, run_whole(out, fill_in_rounds)


def test_rounds_survive_kills(uninterrupted: tuple[Path, float], tmp_path: Path) -> None:
    whole, seconds = uninterrupted
    out = tmp_path / "run"
    run_through_kills(out, 4, seconds, seed=0, work=fill_in_rounds)
    assert_same_run(whole, out)
    assert ll.open_run(whole).manifest.stopping == ll.open_run(out).manifest.stopping


def test_two_processes_share_the_rounds(uninterrupted: tuple[Path, float], tmp_path: Path) -> None:
    whole, _ = uninterrupted
    out = tmp_path / "run"
    for worker in start_workers(out, 2, fill_in_rounds):
        finish(worker)
    assert_same_run(whole, out)


def test_a_folder_is_a_run_in_memory_and_ends_with_every_row(uninterrupted: tuple[Path, float]) -> None:
    lens = ll.LensModel.wrap(tiny_model("qwen3"), tiny_tokenizer(), name="tiny-random")
    run = fill_in_rounds(lens, None)
    opened = ll.open_run(uninterrupted[0])
    for name in run.data.variables:
        np.testing.assert_array_equal(run.data[name].values, opened.data[name].values, err_msg=str(name))
    verdict = run.manifest.stopping
    assert verdict == opened.manifest.stopping
    assert (verdict.ending, verdict.rows_decoded) == ("all", verdict.rows)
    assert verdict.tokens_per_sample == 16
    assert run.tokens_per_sample is None
    whole = ll.analyze(lens, prompts(6), **OPTIONS)
    assert verdict.rows == whole.data.sizes["token"]
    for name, variable in whole.data.data_vars.items():
        np.testing.assert_allclose(run.data[name].values, variable.values, rtol=1e-4, atol=1e-5, err_msg=str(name))


def rounds(run: Run) -> Any:
    return lambda tokens: thinned(run, tokens, 0)


def test_a_clear_layer_is_stable_in_the_first_round() -> None:
    run, verdict = run_until_stopped(rounds(make_run([1.0] * 4 + [-1.0] * 4, samples=20, tokens=80)))
    assert (verdict.ending, verdict.layer, verdict.tokens_per_sample) == ("layer", 4, 8)
    assert verdict.frequency >= 0.95
    assert verdict.goal == "layer"
    assert verdict.rows_decoded == run.data.sizes["token"] < verdict.rows / 5
    assert "layer 4 in 100% of resamples" in verdict.reason
    none = run_until_stopped(rounds(make_run([-1.0] * 8, start=9.0, samples=20, tokens=80, usable_from=9)))[1]
    assert (none.ending, none.layer) == ("layer", None), "that there is no layer can be stable too"


@pytest.mark.parametrize(("samples", "ending"), [(7, "all"), (8, "layer")])
def test_a_layer_is_no_reason_to_stop_below_eight_samples(samples: int, ending: str) -> None:
    run = make_run([1.0] * 4 + [-1.0] * 4, samples=samples, tokens=80)
    noise = np.random.default_rng(0).standard_normal(run.data["entropy"].shape).astype(np.float32)
    run = replace(run, data=run.data.assign(entropy=run.data["entropy"] + 0.5 * noise))  # so that more tokens always help
    end = run_until_stopped(rounds(run))[1]
    assert (end.ending, end.frequency) == (ending, 1.0)
    assert end.layer == 4


def test_precision_is_reached_with_the_rows_that_it_takes() -> None:
    """Noise within samples alone: a quarter of the half-width takes about sixteen times the rows."""
    run = make_run([1.0, -1.0], samples=30, tokens=900, noise=0.0, start=5.0)
    noisy = run.data["entropy"] + np.random.default_rng(0).standard_normal(run.data["entropy"].shape).astype(np.float32)
    run = replace(run, data=run.data.assign(entropy=noisy))
    first = stopping_verdict(thinned(run, 8, 0), 1.0).half_width
    assert first is not None
    ends = [run_until_stopped(rounds(run), share * first)[1] for share in (1.01, 0.6, 0.3)]
    assert [end.ending for end in ends] == ["precision"] * 3
    assert ends[0].tokens_per_sample == 8
    assert ends[1].tokens_per_sample in (16, 32)
    assert ends[2].tokens_per_sample in (64, 128)
    for end, share in zip(ends, (1.01, 0.6, 0.3), strict=True):
        assert end.half_width <= share * first
        assert end.half_width_of_all < end.half_width


def test_samples_that_differ_end_it_early_and_are_named() -> None:
    run = make_run([0.3, 0.3, -0.3, -0.3], samples=10, tokens=200, noise=0.0, start=5.0)
    offset = np.random.default_rng(0).standard_normal((10, 4, 7)).astype(np.float32)[run.data["sample"].values]
    run = replace(run, data=run.data.assign(entropy=run.data["entropy"] + offset))
    for precision in (None, 0.01):
        _, end = run_until_stopped(rounds(run), precision)
        assert (end.ending, end.tokens_per_sample) == ("samples", 8)
        assert "more samples would" in end.reason


def test_a_precision_within_reach_of_the_last_rows_is_gone_for() -> None:
    """Where all the rest would gain little, another round follows only if that little reaches the precision."""
    run = make_run([0.3, -0.3], samples=10, tokens=120, noise=0.0, start=5.0)
    rng = np.random.default_rng(0)
    offset = rng.standard_normal((10, 2, 7)).astype(np.float32)[run.data["sample"].values]
    noise = rng.standard_normal(run.data["entropy"].shape).astype(np.float32)
    drawn = thinned(replace(run, data=run.data.assign(entropy=run.data["entropy"] + offset + noise)), 16, 0)
    seen = stopping_verdict(drawn, 1e-9)
    now, then = seen.half_width, seen.half_width_of_all
    assert now is not None
    assert then is not None
    assert 0.9 * now < then < now
    endings = [stopping_verdict(drawn, precision).ending for precision in (0.99 * then, (then + now) / 2, 1.01 * now)]
    assert endings == ["samples", None, "precision"]


def test_one_sample_is_decoded_whole() -> None:
    for precision in (None, 0.5):
        _, end = run_until_stopped(rounds(make_run([1.0, -1.0], samples=1, tokens=50)), precision)
        assert (end.ending, end.half_width, end.frequency) == ("all", None, None)


def test_the_share_of_draws_is_unbiased() -> None:
    """The variance between draws from one data set is what each draw on its own says it is."""
    run = make_run([1.0, -1.0], samples=8, tokens=60, noise=0.5)
    # samples far apart, so that no share comes near its bound of 1
    run = replace(run, data=run.data.assign(entropy=run.data["entropy"] + 3 * run.data["sample"]))
    means, said = [], []
    for draw in range(400):
        drawn = thinned(run, 6, draw)
        response = drawn.data["in_response"].values == 1
        per_sample = drawn.data["entropy"].isel(token=response).groupby("sample").mean().values
        means.append(per_sample.mean(0))
        said.append(share_of_draws(drawn.values("entropy"), drawn, "response") * per_sample.var(0, ddof=1) / 8)
    ratio = np.mean(said, axis=0) / np.var(means, axis=0, ddof=1)
    assert ratio.mean() == pytest.approx(1, abs=0.08)
    assert share_of_draws(run.values("entropy"), run, "response").max() == 0, "nothing was drawn"


def test_intervals_hold_what_they_say_stopping_included() -> None:
    """A small version of benchmarks/coverage.py; the percentile bootstrap of 32 samples is known to run a little low."""
    found = _benchmark().simulate(32, 30, ("auto, layer", "auto, precision"))
    for way, result in found.items():
        assert 0.87 <= result["coverage"] <= 0.99, way
        assert abs(result["bias"]) < 0.08, way
        assert result["rows_decoded"] < 0.6, way
    assert found["auto, layer"]["same_layer_when_stable"] == 1.0


def _benchmark() -> ModuleType:
    spec = importlib.util.spec_from_file_location("coverage_benchmark", ROOT / "benchmarks" / "coverage.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_what_auto_needs_is_told_before_anything_runs(qwen: ll.LensModel) -> None:
    samples = [ll.Sample(random_ids(8, i), 3) for i in range(3)]
    for options, message in (
        ({"tokens_per_sample": 0}, "must be 1 or more"),
        ({"tokens_per_sample": True}, "must be 1 or more"),
        ({"precision": 0.1}, "pass both"),
        ({"tokens_per_sample": 8, "precision": 0.1}, "pass both"),
        ({"tokens_per_sample": "auto", "precision": 0.0}, "above 0"),
        ({"tokens_per_sample": "auto", "precision": float("nan")}, "above 0"),
        ({"tokens_per_sample": "auto", "metrics": "agrees", "precision": 1.0}, "add metric entropy"),
        ({"tokens_per_sample": "auto", "sites": "resid_post"}, "add site ffn_in, site ffn_out, or name a precision="),
        ({"tokens_per_sample": "auto", "layers": 2}, "add all 4 layers"),
    ):
        with pytest.raises(SelectionError, match=message):
            ll.analyze(qwen, samples, **options)  # type: ignore[arg-type]
    run = ll.analyze(qwen, samples, sites="resid_post", layers=2, tokens_per_sample="auto", precision=50.0)
    assert run.manifest.stopping.ending == "precision", "a curve of one site has no ΔS and needs none"
    prompts = ll.analyze(qwen, [ll.Sample(random_ids(20, i), 20) for i in range(3)], tokens_per_sample="auto", precision=50.0)
    assert prompts.data.sizes["token"] == 24, "prompts alone are judged by all their rows"
