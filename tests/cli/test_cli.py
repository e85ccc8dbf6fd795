"""The command line: how it ends, what it says on which stream, and that a stopped command goes on."""

from __future__ import annotations

import errno
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
import typer
from safetensors.torch import load_file, save_file

import layerlens as ll
from layerlens.cli import main
from layerlens.cli.app import app
from layerlens.cli.options import parse_layers, parse_names
from layerlens.errors import SelectionError
from layerlens.models import generate_responses
from layerlens.storage.bundled import bundled_prompts
from tests.support.tiny_models import tiny_model, tiny_tokenizer
from tests.support.training_folders import write_training

VERBS = ("analyze", "select", "compare", "check")


class Ended(NamedTuple):
    code: int
    out: str
    err: str


Layerlens = Callable[..., Ended]


@pytest.fixture
def layerlens(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Layerlens:
    """The command, run in this process: exit code and both streams."""

    def run(*arguments: Any) -> Ended:
        monkeypatch.setattr(sys, "argv", ["layerlens", *map(str, arguments)])
        capfd.readouterr()
        code: Any = 0
        try:
            main()
        except SystemExit as end:
            code = end.code or 0
        return Ended(code, *capfd.readouterr())

    return run


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `model`, `prompts.txt` and a finished `run`."""
    folder = tmp_path_factory.mktemp("cli")
    tiny_model().save_pretrained(folder / "model")
    tiny_tokenizer().save_pretrained(folder / "model")
    (folder / "prompts.txt").write_text("w1 w2 w3\nw4\nw5 w6\n")
    lens = ll.load(folder / "model")
    ll.analyze(lens, ll.read_prompts(folder / "prompts.txt", lens), generate=ll.Generation(6), out=folder / "run")
    return folder


def one_line(ended: Ended, *said: str) -> None:
    assert ended.code == 2, ended
    assert ended.err.count("\n") == 1, ended.err
    assert ended.err.startswith("layerlens: ")
    assert all(text in ended.err for text in said), ended.err
    assert ended.out == ""


def damaged(folder: Path, tmp_path: Path, change: Callable[[dict[str, torch.Tensor]], Any]) -> Path:
    model = tmp_path / "damaged"
    model.mkdir()
    for file in (folder / "model").iterdir():
        (model / file.name).write_bytes(file.read_bytes())
    weights = load_file(model / "model.safetensors")
    change(weights)
    save_file(weights, model / "model.safetensors", metadata={"format": "pt"})
    return model


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


def test_analyze_then_select_compare_and_check(layerlens: Layerlens, folder: Path, tmp_path: Path) -> None:
    arguments = ("analyze", folder / "model", folder / "prompts.txt", "--max-new-tokens", 6, "--out", tmp_path / "run")
    done = layerlens(*arguments)
    assert (done.code, done.err) == (0, "")
    assert "3 samples" in done.out
    assert ll.open_run(tmp_path / "run").data.equals(ll.open_run(folder / "run").data), "the command is the function"
    again = layerlens(*arguments, "--json")
    assert again.code == 0
    assert json.loads(again.out)["samples"] == 3
    selected = layerlens("select", tmp_path / "run", "--json")
    assert selected.code == 0
    assert json.loads(selected.out)["rule"] == "boundary"
    assert json.loads(selected.out) == ll.select_layer(ll.open_run(tmp_path / "run")).to_dict() | {
        "phases": json.loads(selected.out)["phases"]
    }
    compared = layerlens("compare", tmp_path / "run", folder / "run", "--json", "--out", tmp_path / "deep" / "table.csv")
    rows = json.loads(compared.out)
    assert len(rows) == 2
    assert rows[0] == rows[1]
    assert (tmp_path / "deep" / "table.csv").read_text().count("\n") == 3
    checked = json.loads(layerlens("check", folder / "model", "--json").out)
    assert checked["ok"] is True
    assert set(checked["sites"]) == {"resid_pre", "attn_in", "attn_out", "resid_mid", "ffn_in", "ffn_out", "resid_post"}
    for verb in ("select", "compare"):
        plain = layerlens(verb, tmp_path / "run")
        assert plain.code == 0
        assert "boundary" in plain.out


def test_the_demo_samples_once_and_reads_the_same_texts_under_both_norms(
    layerlens: Layerlens, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sampled: list[str] = []

    def counted(model: Any, samples: Any, *more: Any) -> Any:
        sampled.extend(f"{model.name} {sample.id}" for sample in samples if not sample.has_response)
        return generate_responses(model, samples, *more)

    monkeypatch.setattr("layerlens.analysis.batches.generate_responses", counted)
    monkeypatch.setattr("layerlens.cli.demo.draw_figures", lambda *_: ([], []))
    done = layerlens("demo", "--samples", 2, "--out", tmp_path, "--json")
    assert done.code == 0, done.err
    assert len(sampled) == len(set(sampled)) == 4, "two problems, two models"
    for name in ("tiny-qwen3", "tiny-llama"):
        run, normed = (ll.open_run(tmp_path / "runs" / folder) for folder in (name, f"{name}-final"))
        assert (run.norm, normed.norm) == ("none", "final")
        for coord in ("sample", "sample_id", "sample_text", "ground_truth", "position", "token_id", "token_text", "in_response"):
            np.testing.assert_array_equal(run.data[coord].values, normed.data[coord].values)
        assert not run.data["entropy"].equals(normed.data["entropy"])
    lens = ll.load("tiny-llama", dtype="float32")
    anew = ll.analyze(lens, ll.read_prompts(bundled_prompts(), lens, limit=2), generate=ll.Generation(256, seed=0), norm="final")
    np.testing.assert_allclose(normed.data["entropy"], anew.data["entropy"], atol=1e-4)
    np.testing.assert_array_equal(normed.data["token_id"], anew.data["token_id"])


def test_options_reach_the_analysis(layerlens: Layerlens, folder: Path, tmp_path: Path) -> None:
    done = layerlens(
        "analyze", folder / "model", folder / "prompts.txt", "-o", tmp_path / "r", "--limit", 2, "--no-generate", "--norm", "final",
        "--sites", "ffn_out, resid_post", "--layers", "1-2,4", "--metrics", "entropy", "--top-k", 2, "--kl-from-layer", 1, "--no-chat",
        "--dtype", "float64", "--batch-tokens", 5,
    )  # fmt: skip
    assert done.code == 0, done.err
    run = ll.open_run(tmp_path / "r")
    assert (run.n_samples, run.norm, run.layers, run.sites) == (2, "final", [1, 2, 4], ["ffn_out", "resid_post"])
    assert set(run.data.data_vars) == {"entropy", "kl_from_layer", "top_ids", "top_probs"}
    assert run.manifest.config.generate is None
    assert run.manifest.model.dtype == "float64"
    assert run.sample(1).sizes["token"] == 1, "w4, without a template"


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
    prompts = ("--limit", 3, "--split", "train", "--column", "q", "--no-chat", "--system", "Be brief.", "--no-thinking")
    assert layerlens("check", "m", *model).code == 0
    one_line(layerlens("analyze", "m", "p.txt", "--out", tmp_path / "a", *model, *prompts), "seen enough")
    one_line(layerlens("eval", "m", "--tasks", "arithmetic", "--out", tmp_path / "e", *model, *prompts), "seen enough")
    asked = {"dtype": "float64", "device": None, "device_map": "auto", "revision": "main", "trust_remote_code": True}
    assert loaded == [{"name": "m", **asked, "check": False}, {"name": "m", **asked}, {"name": "m", **asked}]
    options = {"split": "train", "column": "q", "chat": False, "system": "Be brief.", "enable_thinking": False}
    assert read == [{"limit": 3, **options}] * 2


def test_what_the_user_can_mend_is_one_line(layerlens: Layerlens, folder: Path, tmp_path: Path) -> None:
    model, prompts, out = folder / "model", folder / "prompts.txt", tmp_path / "out"

    def analyze(prompts: Path | str = prompts, *more: Any, model: Path | str = model) -> Ended:
        return layerlens("analyze", model, prompts, "--max-new-tokens", 4, "--out", out, *more)

    (tmp_path / "empty.jsonl").write_text("\n")
    (tmp_path / "long.txt").write_text("w1 " * 200)
    one_line(analyze(tmp_path / "none.jsonl"), "none.jsonl: no such prompt file")
    one_line(analyze(tmp_path / "empty.jsonl"), "holds no prompts")
    one_line(analyze(tmp_path / "long.txt"), "202 tokens and 4 new tokens exceed the context of model (128)")
    one_line(analyze(prompts, "--sites", "middle"), "unknown site 'middle'", "resid_pre")
    one_line(analyze(prompts, "--metrics", "surprise"), "unknown metric 'surprise'")
    one_line(analyze(prompts, "--layers", "1-x"), "like 1-6,12, got '1-x'")
    one_line(analyze(prompts, "--layers", "0-2"), "counted from 1")
    one_line(analyze(prompts, "--layers", "9"), "layers must be in 1..4")
    one_line(analyze(prompts, "--kl-from-layer", "9"), "layers must be in 1..4")
    one_line(analyze(prompts, "--top-p", "0"), "top_p must be in (0, 1]")
    one_line(analyze(prompts, "--dtype", "int3"), "unknown dtype 'int3'")
    one_line(analyze(prompts, "--device", "nonsense"), "cannot be put on device 'nonsense'")
    one_line(analyze(model=tmp_path / "no-model"), "no such folder")
    assert not out.exists(), "nothing is left behind"
    one_line(
        layerlens("analyze", model, prompts, "--out", folder / "run", "--max-new-tokens", 5), "another configuration", "max_new_tokens"
    )
    one_line(layerlens("select", tmp_path), "holds no run")
    one_line(layerlens("compare", folder / "run", tmp_path / "none"), "holds no run")
    (folder / "file").write_text("")
    one_line(layerlens("compare", folder / "run", "--out", folder / "file" / "t.csv"), "cannot be written")


def test_broken_weights_are_one_line(layerlens: Layerlens, folder: Path, tmp_path: Path) -> None:
    broken = damaged(folder, tmp_path, lambda weights: weights.pop("model.layers.1.mlp.up_proj.weight"))
    for verb in (("check", broken), ("analyze", broken, folder / "prompts.txt", "--out", tmp_path / "out")):
        one_line(layerlens(*verb), "1 weights are missing", "model.layers.1.mlp.up_proj.weight")
    (broken / "model.safetensors").write_bytes((folder / "model" / "model.safetensors").read_bytes()[:3000])
    one_line(layerlens("check", broken), "could not be loaded")


def test_check_refuses_a_model_with_nan(layerlens: Layerlens, folder: Path, tmp_path: Path) -> None:
    def spoil(weights: dict[str, torch.Tensor]) -> None:
        weights["model.layers.2.mlp.up_proj.weight"][0, 0] = float("nan")

    broken = damaged(folder, tmp_path, spoil)
    shown = layerlens("check", broken)
    assert shown.code == 2
    assert "REFUSED" in shown.out
    answer = layerlens("check", broken, "--json")
    assert answer.code == 2
    assert json.loads(answer.out)["ok"] is False
    one_line(layerlens("analyze", broken, folder / "prompts.txt", "--out", tmp_path / "out"), "not finite")


def test_a_full_disk_is_one_line(layerlens: Layerlens, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("layerlens.storage.files.os.replace", full)
    ended = layerlens("analyze", folder / "model", folder / "prompts.txt", "--max-new-tokens", 2, "--out", tmp_path / "run")
    one_line(ended, "no space left", "run the same command again")


WRONG_USAGE = {
    "bogus": "no such command 'bogus'; see layerlens --help",
    "selct": "did you mean 'select'",
    "--nonsense": "no such option: --nonsense; see layerlens --help",
    "select": "missing argument 'RUN'; see layerlens select --help",
    "select x y": "unexpected extra argument(s) (y); see layerlens select --help",
    "select x --nonsense": "no such option: --nonsense; see layerlens select --help",
    "select x --rule best": "invalid value for '--rule': 'best' is not one of 'boundary', 'entropy_drop', 'agreement'; see",
    "select x --tolerance": "'--tolerance' requires an argument; see layerlens select --help",
    "compare": "missing argument 'RUN'; see layerlens compare --help",
    "plot": "missing argument 'RUN'; see layerlens plot --help",
    "check": "missing argument 'MODEL'; see layerlens check --help",
    "analyze m p": "missing option '--out' / '-o'; see layerlens analyze --help",
    "analyze m p -o x --limit 0": "'--limit': input should be greater than or equal to 1; see layerlens analyze --help",
    "eval m --out o": "missing option '--tasks'; see layerlens eval --help",
    "eval m --tasks arithmetic --out o --norm final": "--site and --norm are of an internal policy: name its --layer as well",
    "bench --rows x": "'--rows': input should be a valid integer",
    "demo --smaples 3": "--smaples (possible options: --samples); see layerlens demo --help",
    "train --fiel 3": "missing option '--config' / '-c'; see layerlens train --help",
}


@pytest.mark.parametrize("words", WRONG_USAGE)
def test_wrong_usage_is_one_line(layerlens: Layerlens, words: str) -> None:
    ended = layerlens(*words.split())
    one_line(ended)
    assert WRONG_USAGE[words].lower() in ended.err.lower()


def test_help_and_version(layerlens: Layerlens, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    assert layerlens("--version").out == f"layerlens {ll.__version__}\n"
    names = [command.name for command in app.registered_commands]
    assert set(VERBS) | {"demo", "plot"} <= set(names)
    front = layerlens("--help")
    assert front.code == 0
    assert layerlens() == front, "no verb: the help"
    for name in names:
        assert name is not None
        assert name in front.out
        shown = layerlens(name, "--help")
        assert shown.code == 0, name
        assert shown.err == ""
        assert "--help" in shown.out
    analyze = layerlens("analyze", "-h").out
    for option in (
        "--out",
        "--limit",
        "--no-thinking",
        "--max-new-tokens",
        "--norm",
        "--sites",
        "--layers",
        "--metrics",
        "--dtype",
        "--json",
    ):
        assert option in analyze


@pytest.mark.parametrize("verb", [command.name for command in app.registered_commands])
def test_help_loses_no_word(layerlens: Layerlens, verb: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Brackets are markup to some renderers: `[default: ...]` and `layerlens-policy[accelerate]` once vanished."""

    def bare(text: str) -> str:
        return re.sub(r"[\s│`]", "", text)

    monkeypatch.setenv("COLUMNS", "120")
    shown = layerlens(verb, "--help").out
    assert f"Usage: layerlens {verb} " in shown
    assert "[[" not in shown
    command = typer.main.get_command(app).commands[verb]  # type: ignore[attr-defined]
    for text in (command.help, *(parameter.help for parameter in command.params)):
        assert bare(text) in bare(shown), text


def test_training_folders_take_no_options_of_runs(layerlens: Layerlens, tmp_path: Path) -> None:
    (tmp_path / "trainer_state.json").write_text("{}")
    for option in (("--kind", "flow"), ("--sample", 0), ("--site", "ffn_out"), ("--rows", "all"), ("--over", "token")):
        one_line(layerlens("plot", tmp_path, *option, "--out", tmp_path / "figures"), "leave them out for training folders")


def test_training_folders_of_one_name_have_figures_each(layerlens: Layerlens, tmp_path: Path) -> None:
    seeds = [write_training(tmp_path / f"seed{seed}" / "bupo", layers=4, layer=2, every=20, seed=seed) for seed in (0, 1)]
    told = json.loads(layerlens("plot", *seeds, "--out", tmp_path / "figures", "--json").out)
    drawn = told["figures"]
    assert len(set(drawn)) == len(drawn)
    assert [reason.partition(":")[0] for reason in told["skipped"]] == ["bupo-1-difference", "bupo-2-difference"]  # the looks are empty
    for kind in ("layer-entropy", "modules", "drift", "refinement"):
        assert {str(tmp_path / "figures" / f"bupo-{number}-{kind}.png") for number in (1, 2)} <= set(drawn)


def test_layers_and_names_as_texts() -> None:
    assert parse_layers("all") == "all"
    assert parse_layers("1-3, 7,9-9") == [1, 2, 3, 7, 9]
    assert parse_names("all") == "all"
    assert parse_names(" a, b ,") == ["a", "b"]
    for wrong in ("", "x", "1-", "-1", "1--3", "²", "1-2-3", "1.5", "1-99999999999", "١"):
        with pytest.raises(SelectionError, match="like 1-6,12"):
            parse_layers(wrong)


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
    assert err == "layerlens: interrupted; what is done is kept, and the same command goes on from there\n"
    assert out == ""
    done = len(list(samples.glob("*.nc")))
    assert 0 < done < 30
    before = {file.name: file.stat().st_mtime_ns for file in samples.glob("*.nc")}
    again = subprocess.run(command, capture_output=True, text=True, env=env, timeout=120, check=False)
    assert (again.returncode, again.stderr) == (0, "")
    assert json.loads(again.stdout)["samples"] == 30
    assert ll.open_run(tmp_path / "run").complete
    assert {name: (samples / name).stat().st_mtime_ns for name in before} == before, "what was done is not done again"
