"""Manifests: written and read without loss, damaged ones refused in one line, two configurations never mixed."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from layerlens.errors import RunError
from layerlens.storage.manifest import (
    AnalysisConfig,
    EvaluationConfig,
    EvaluationManifest,
    ModelInfo,
    RunManifest,
    SampleSet,
    SamplingSettings,
    Stopping,
    read_manifest,
    require_same,
    write_manifest,
)

MODEL = ModelInfo("m", "f00d", "bfloat16", revision="main", architecture="qwen3", n_layers=3, d_model=8, vocabulary=99)
SAMPLING = SamplingSettings(16, 0.7, 0.9, 5)
RUN = RunManifest(
    model=MODEL,
    config=AnalysisConfig(
        "final", ("ffn_in", "ffn_out"), (1, 2, 3), ("entropy",), "response", 0.5, 2, 4, "auto", 0.1, SAMPLING, "native-float32"
    ),
    samples=SampleSet(7, "cafe"),
    batch_tokens=64,
    device="a processor",
    stopping=Stopping("precision", 0.1, 0.95, 0.1, 8, "all", 16, 20, 20, 0.2, None, None, None, "every token is decoded"),
)
EVALUATION = EvaluationManifest(
    model=MODEL, config=EvaluationConfig("transformers", SAMPLING, "math", 2, "ffn_out", "none"), problems=SampleSet(7, "cafe"), task="aime"
)


@pytest.mark.parametrize("manifest", [RUN, replace(RUN, stopping=None, config=AnalysisConfig("none")), EVALUATION])
def test_manifest_written_and_read_is_the_same(manifest: Any, tmp_path: Path) -> None:
    write_manifest(tmp_path / "m.json", manifest)
    assert read_manifest(tmp_path / "m.json", type(manifest)) == manifest


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda m: m.pop("samples"), "RunManifest lacks samples"),
        (lambda m: m["model"].pop("fingerprint"), "ModelInfo lacks fingerprint"),
        (lambda m: m.update(model="qwen"), "expected an object for ModelInfo, got str"),
        (lambda m: m["samples"].update(count="many"), "expected int, got 'many'"),
        (lambda m: m["config"].update(layers=3), "expected a list, got int"),
        (lambda m: m["config"].update(layers=["one"]), "expected int, got 'one'"),
        (lambda m: m["config"].update(sites="resid_post"), "expected a list, got str"),
        (lambda m: m.update(versions=[]), "expected an object, got list"),
        (lambda m: m.update(identity=None), "expected str, got None"),
        (lambda m: m["model"].update(n_layers="four"), "expected int, got 'four'"),
        (lambda m: m["config"].update(tokens_per_sample="many"), "expected int, got 'many' or expected one of auto, got 'many'"),
        (lambda m: m["config"].update(generate=[1]), "expected an object for SamplingSettings, got list"),
        (lambda m: m["config"].update(norm="foo"), "expected one of none, final, matched, got 'foo'"),
        (lambda m: m["config"].update(temperature="hot"), "expected float, got 'hot'"),
        (lambda m: m["samples"].update(count=True), "expected int, got True"),
        (lambda m: m.update(format=3), "not of format 1 or 2"),
        (lambda m: m.pop("format"), "not of format 1 or 2"),
    ],
)
def test_damaged_manifest_is_refused_in_one_line(change: Any, message: str, tmp_path: Path) -> None:
    write_manifest(tmp_path / "run.json", RUN)
    found = json.loads((tmp_path / "run.json").read_text())
    change(found)
    (tmp_path / "run.json").write_text(json.dumps(found))
    with pytest.raises(RunError, match=message) as told:
        read_manifest(tmp_path / "run.json", RunManifest)
    assert "\n" not in str(told.value)


def test_manifests_of_one_computation_are_the_same_wherever_the_model_lies() -> None:
    elsewhere = replace(RUN, model=replace(MODEL, name="elsewhere", revision=None), created="then", device="another", stopping=None)
    require_same(RUN, elsewhere, Path("run"))
    assert replace(RUN, created="then") != RUN


@pytest.mark.parametrize(
    ("other", "named"),
    [
        (replace(RUN, config=replace(RUN.config, norm="none")), "config.norm is 'none' there and 'final' now"),
        (replace(RUN, config=replace(RUN.config, backend="torch-mm")), "config.backend is 'torch-mm' there"),
        (replace(RUN, config=replace(RUN.config, generate=None)), "config.generate"),
        (replace(RUN, samples=SampleSet(8, "cafe")), "samples.count is 8 there and 7 now"),
        (replace(RUN, model=replace(MODEL, fingerprint="0")), "model.fingerprint is '0' there"),
        (replace(RUN, model=replace(MODEL, dtype="float32")), "model.dtype"),
        (replace(RUN, format=1), "made by an earlier layerlens"),
    ],
)
def test_another_computation_is_refused_and_named(other: RunManifest, named: str) -> None:
    with pytest.raises(RunError, match=named):
        require_same(RUN, other, Path("run"))


def test_weights_without_a_fingerprint_are_told_apart_by_name() -> None:
    """A hub model in vLLM, whose weights nobody here can read."""
    unread = replace(EVALUATION, model=ModelInfo("Qwen/A", "", "auto"))
    require_same(unread, replace(unread, created="then"), Path("eval"))
    for other in (ModelInfo("Qwen/B", "", "auto"), ModelInfo("Qwen/A", "", "auto", revision="v2")):
        with pytest.raises(RunError, match=r"model\.(name|revision)"):
            require_same(unread, replace(unread, model=other), Path("eval"))


def test_evaluations_of_format_1_are_continued() -> None:
    require_same(EVALUATION, replace(EVALUATION, format=1), Path("eval"))


def test_problems_of_an_evaluation_that_were_called_samples_are_read(tmp_path: Path) -> None:
    write_manifest(tmp_path / "eval.json", EVALUATION)
    found = json.loads((tmp_path / "eval.json").read_text())
    found["samples"] = found.pop("problems")
    (tmp_path / "eval.json").write_text(json.dumps(found))
    assert read_manifest(tmp_path / "eval.json", EvaluationManifest) == EVALUATION


def test_other_problems_are_refused_and_named() -> None:
    with pytest.raises(RunError, match=r"problems\.count is 8 there and 7 now"):
        require_same(EVALUATION, replace(EVALUATION, problems=SampleSet(8, "cafe")), Path("eval"))
