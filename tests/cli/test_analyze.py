"""`layerlens analyze`: options reach the analysis, and a stopped command continues."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import layerlens as ll
from layerlens.errors import SelectionError
from layerlens.report.measured import command
from tests.support.command_line import Layerlens, one_line


def test_analyze_of_drawn_tokens(layerlens: Layerlens, folder: Path, tmp_path: Path) -> None:
    arguments = ("analyze", folder / "model", folder / "prompts.txt", "--max-new-tokens", 6, "--rows", "response")
    done = layerlens(*arguments, "--out", tmp_path / "two", "--tokens-per-sample", 2)
    assert (done.code, done.err) == (0, "")
    assert ll.open_run(tmp_path / "two").tokens_per_sample == 2
    auto = layerlens(*arguments, "--out", tmp_path / "auto", "--tokens-per-sample", "auto", "--precision", 1e-6, "--json")
    assert auto.code == 0
    stopping = json.loads(auto.out)["stopping"]
    assert stopping == asdict(ll.open_run(tmp_path / "auto").manifest.stopping)
    assert (stopping["goal"], stopping["precision"], stopping["ending"]) == ("precision", 1e-6, "all")
    said = layerlens(*arguments, "--out", tmp_path / "auto", "--tokens-per-sample", "auto", "--precision", 1e-6)
    assert "every token is decoded" in said.out
    one_line(layerlens(*arguments, "--out", tmp_path / "x", "--tokens-per-sample", "some"), "'auto' or a number")
    one_line(layerlens(*arguments, "--out", tmp_path / "x", "--precision", 0.1), "pass both")
    assert not (tmp_path / "x").exists()


def test_options_reach_the_analysis(layerlens: Layerlens, folder: Path, tmp_path: Path) -> None:
    done = layerlens(
        "analyze", folder / "model", folder / "prompts.txt", "-o", tmp_path / "r", "--limit", 2, "--no-generate", "--norm", "final",
        "--sites", "ffn_out, resid_post", "--layers", "1-2,4", "--metrics", "entropy", "--top-k", 2, "--kl-from-layer", 1, "--no-chat",
        "--dtype", "float64", "--batch-tokens", 5, "--thinking-marks", "[", "]", "--similarity-rows", "all",
    )  # fmt: skip
    assert done.code == 0, done.err
    run = ll.open_run(tmp_path / "r")
    assert (run.n_samples, run.norm, run.layers, run.sites) == (2, "final", [1, 2, 4], ["ffn_out", "resid_post"])
    assert set(run.data.data_vars) == {"entropy", "logit_sd", "kl_from_layer", "top_ids", "top_probs"}
    assert run.manifest.config.generate is None
    assert run.manifest.config.similarity_rows == "all"
    assert run.manifest.config.thinking_marks == ("[", "]")
    assert run.manifest.model.dtype == "float64"
    assert run.sample(1).sizes["token"] == 1, "w4, without a template"


def test_a_model_that_was_trained_on_other_prompts_is_told_of(layerlens: Layerlens, folder: Path, tmp_path: Path) -> None:
    model = tmp_path / "trained"
    shutil.copytree(folder / "model", model)
    settings = {"system": "Think, and box.", "chat_template_kwargs": {"enable_thinking": False}}
    (model / "settings.json").write_text(json.dumps({"settings": settings}))
    command = ("analyze", model, folder / "prompts.txt", "--limit", 1, "--no-generate")
    with pytest.warns(UserWarning, match="was trained on prompts with --system 'Think, and box.' and --no-thinking: add this"):
        done = layerlens(*command, "-o", tmp_path / "a")
    assert done.code == 0, done.err
    for options in (("--system", "Else.", "--thinking"), ("--no-chat",)):
        done = layerlens(*command, *options, "-o", tmp_path / options[0])
        assert done.code == 0, done.err  # a warning would be an error here


def test_a_run_whose_template_writes_the_date_goes_on_tomorrow(layerlens: Layerlens, folder: Path, tmp_path: Path) -> None:
    model, out = tmp_path / "model", tmp_path / "run"
    shutil.copytree(folder / "model", model)
    dated = "{% if strftime_now is defined %}{% set today = strftime_now('w%u') %}{% endif %}{{ today }} {{ messages[0]['content'] }} "
    (model / "chat_template.jinja").write_text(dated)
    command = ("analyze", model, folder / "prompts.txt", "--max-new-tokens", 4, "-o", out)
    assert layerlens(*command, "--date", "2026-03-07").code == 0
    weekday = ll.load(model).tokenizer.convert_tokens_to_ids("w6")
    assert ll.open_run(out).sample(0)["text_token_id"].values[0] == weekday, "a Saturday"
    for file in (out / "run.json", out / "texts" / "texts.json"):
        file.write_text(json.dumps(json.loads(file.read_text()) | {"created": "2026-03-07T23:59:59+00:00"}))
    again = layerlens(*command)
    assert again.code == 0, again.err
    one_line(layerlens(*command, "--date", "2026-03-08"), "samples.digest")
    one_line(layerlens(*command, "--date", "tomorrow"), "date must be a day such as 2026-11-28, got 'tomorrow'")


def test_model_and_prompt_options_are_the_same_for_every_verb(
    layerlens: Layerlens, qwen: ll.LensModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded: list[dict[str, Any]] = []
    read: list[dict[str, Any]] = []

    def load(name: str, **keywords: Any) -> ll.LensModel:
        loaded.append({"name": name} | keywords)
        return qwen

    def reader(source: Any, model: Any, **keywords: Any) -> Any:
        read.append(keywords)
        raise SelectionError("seen enough")

    monkeypatch.setattr(ll, "load", load)
    monkeypatch.setattr("layerlens.evaluate.engines.load", load)
    monkeypatch.setattr("layerlens.prompts.readers.read_prompts", reader)
    model = ("--dtype", "float64", "--device-map", "auto", "--revision", "main", "--trust-remote-code")
    prompts = (
        "--limit",
        3,
        "--split",
        "train",
        "--column",
        "q",
        "--no-chat",
        "--system",
        "Be brief.",
        "--no-thinking",
        "--date",
        "2026-03-07",
    )
    assert layerlens("check", "m", *model).code == 0
    one_line(layerlens("analyze", "m", "owner/prompts", "--out", tmp_path / "a", *model, *prompts), "seen enough")
    one_line(layerlens("eval", "m", "--tasks", "arithmetic", "--out", tmp_path / "e", *model, *prompts), "seen enough")
    asked = {"dtype": "float64", "device": None, "device_map": "auto", "quantize": None, "revision": "main", "trust_remote_code": True}
    library = {"backend": "transformers"}
    assert loaded == [
        {"name": "m", **asked, **library, "check": False},
        {"name": "m", **asked, **library},
        {"name": "m", **asked, **library},
    ]
    options = {"split": "train", "column": "q", "chat": False, "system": "Be brief.", "enable_thinking": False, "date": "2026-03-07"}
    assert read == [{"limit": 3, **options}] * 2


def test_ctrl_c_ends_with_130_and_the_same_command_goes_on(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "many.txt").write_text("".join(f"w{i} w{i + 1}\n" for i in range(30)))
    command = [
        sys.executable, "-m", "layerlens", "analyze", str(folder / "model"), str(tmp_path / "many.txt"), "--out", str(tmp_path / "run"),
        "--max-new-tokens", "40", "--batch-tokens", "130", "--json",
    ]  # fmt: skip
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    # a shell lets what it runs in the background ignore SIGINT, and children inherit that: a person's Ctrl-C is not ignored
    heeded = partial(signal.signal, signal.SIGINT, signal.SIG_DFL)
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen(command, **pipes, env=env, preexec_fn=heeded) as worker:
        samples = tmp_path / "run" / "samples"
        while worker.poll() is None and not list(samples.glob("*.nc")):
            time.sleep(0.02)
        worker.send_signal(signal.SIGINT)
        out, err = worker.communicate(timeout=60)
    assert worker.returncode == 130, err
    assert err == "layerlens: interrupted; what is done is kept, and the same command continues from there\n"
    assert out == ""
    done = len(list(samples.glob("*.nc")))
    assert 0 < done < 30
    before = {file.name: file.stat().st_mtime_ns for file in samples.glob("*.nc")}
    again = subprocess.run(command, capture_output=True, text=True, env=env, timeout=120, check=False)
    assert (again.returncode, again.stderr) == (0, "")
    assert json.loads(again.stdout)["samples"] == 30
    assert ll.open_run(tmp_path / "run").complete
    assert {name: (samples / name).stat().st_mtime_ns for name in before} == before, "what was done is not done again"


def test_the_texts_of_a_run_are_read_under_another_norm(layerlens: Layerlens, folder: Path, tmp_path: Path) -> None:
    done = layerlens("analyze", folder / "model", folder / "run", "--norm", "final", "--limit", 2, "--out", tmp_path / "final")
    assert (done.code, done.err) == (0, "")
    run, again = ll.open_run(folder / "run"), ll.open_run(tmp_path / "final")
    assert (again.n_samples, again.norm) == (2, "final")
    for number in range(2):
        assert again.sample(number)["text_token_id"].values.tolist() == run.sample(number)["text_token_id"].values.tolist()
    source = again.manifest.texts
    assert source is not None
    assert source.run == str(folder / "run")
    one_line(layerlens("analyze", "tiny-qwen3", folder / "run", "--out", tmp_path / "x"), "another tokenizer than")
    assert not (tmp_path / "x").exists()


AGAIN = {
    "responses": "--max-new-tokens 3 --seed 2 --top-p 0.9 --limit 2 --similarity-rows all --thinking-marks 'w1 w' ]",
    "prompts alone": "--no-generate --norm final --sites ffn_out,resid_post --layers 1-2,4 --metrics all,renyi_2",
    "texts of a run": "--rows response --top-k 2 --keep means",
}


@pytest.mark.parametrize("case", AGAIN)
def test_the_command_of_a_report_repeats_the_run(layerlens: Layerlens, folder: Path, tmp_path: Path, case: str) -> None:
    source = folder / ("run" if case == "texts of a run" else "prompts.txt")
    done = layerlens("analyze", folder / "model", source, *shlex.split(AGAIN[case]), "--dtype", "float64", "--out", tmp_path / "one")
    assert done.code == 0, done.err
    run = ll.open_run(tmp_path / "one")
    places = {run.model: folder / "model", "PROMPTS": source, str(tmp_path / "one"): tmp_path / "other"}
    said = [places.get(word, word) for word in shlex.split(command(run))]
    assert ("PROMPTS" in command(run)) == (case != "texts of a run")
    again = layerlens(*said[1:])
    assert again.code == 0, again.err
    other = ll.open_run(tmp_path / "other")
    assert other.manifest.config == run.manifest.config
    assert (other.manifest.samples, other.manifest.keep) == (run.manifest.samples, run.manifest.keep)
    np.testing.assert_array_equal(other.mean("entropy", rows="all")["mean"], run.mean("entropy", rows="all")["mean"])


def test_the_sampling_batch_reaches_the_texts(layerlens: Layerlens, folder: Path, tmp_path: Path) -> None:
    arguments = (
        "analyze",
        folder / "model",
        folder / "prompts.txt",
        "--max-new-tokens",
        4,
        "--metrics",
        "entropy",
        "--out",
        tmp_path / "r",
    )
    assert layerlens(*arguments, "--sampling-batch", 2).code == 0
    assert sorted(file.name for file in (tmp_path / "r" / "texts").glob("0*.json")) == ["000000.json", "000001.json"]
    one_line(layerlens(*arguments, "--sampling-batch", 3), "config.batch is 2 there and 3 now")
