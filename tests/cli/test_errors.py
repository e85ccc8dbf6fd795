"""What a user can act on is one line on stderr and exit code 2."""

from __future__ import annotations

import builtins
import errno
from pathlib import Path
from typing import Any

import pytest

from layerlens.__main__ import main
from tests.support.command_line import Ended, Layerlens, one_line
from tests.support.damage import damaged

VERBS = ("analyze", "select", "compare", "check")


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
    (tmp_path / "other" / "task").mkdir(parents=True)
    (tmp_path / "other" / "task" / "eval.json").touch()
    one_line(layerlens("select", tmp_path / "other"), "other holds evaluations, and no run; make one with `layerlens analyze --out`")
    one_line(layerlens("select", tmp_path / "other" / "task"), "task holds an evaluation, and no run")
    one_line(layerlens("compare", folder / "run", tmp_path / "none"), "holds no run")
    (folder / "file").write_text("")
    one_line(layerlens("compare", folder / "run", "--out", folder / "file" / "t.csv"), "cannot be written")


@pytest.mark.parametrize(
    "words", ["{folder}/none.jsonl", "{file} --layers 1-x", "{file} --sites foo", "{file} --sites ,", "{file} --metrics foo"]
)
def test_mistakes_are_told_before_weights_are_loaded(layerlens: Layerlens, folder: Path, tmp_path: Path, words: str) -> None:
    """The model is one that cannot be loaded, which would be said first."""
    given = words.format(folder=tmp_path, file=folder / "prompts.txt").split()
    ended = layerlens("analyze", tmp_path / "no-model", *given, "--out", tmp_path / "out")
    one_line(ended)
    assert "no-model" not in ended.err


def test_broken_weights_are_one_line(layerlens: Layerlens, folder: Path, tmp_path: Path) -> None:
    broken = damaged(folder, tmp_path, lambda weights: weights.pop("model.layers.1.mlp.up_proj.weight"))
    for verb in (("check", broken), ("analyze", broken, folder / "prompts.txt", "--out", tmp_path / "out")):
        one_line(layerlens(*verb), "1 weights are missing", "model.layers.1.mlp.up_proj.weight")
    (broken / "model.safetensors").write_bytes((folder / "model" / "model.safetensors").read_bytes()[:3000])
    one_line(layerlens("check", broken), "could not be loaded")


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
    "select x --rule best": "invalid value for '--rule': 'best' is not one of 'boundary', 'settled', 'skill',",
    "select x --tolerance": "'--tolerance' requires an argument; see layerlens select --help",
    "compare": "missing argument 'RUN'; see layerlens compare --help",
    "plot": "missing argument 'RUN'; see layerlens plot --help",
    "check": "missing argument 'MODEL|RUN'; see layerlens check --help",
    "analyze m p": "missing option '--out' / '-o'; see layerlens analyze --help",
    "analyze m p -o x --limit 0": "'--limit': input should be greater than or equal to 1; see layerlens analyze --help",
    "eval m --out o": "missing option '--tasks'; see layerlens eval --help",
    "eval m --tasks arithmetic --out o --norm final": "--site, --norm and --lens describe an internal policy: name its --layer as well",
    "bench --rows x": "'--rows': input should be a valid integer",
    "demo --smaples 3": "--smaples (possible options: --samples); see layerlens demo --help",
    "train --fiel 3": "missing option '--config' / '-c'; see layerlens train --help",
}


WITHOUT_EFFECT = {
    "analyze {model} {run} -o {out} --max-new-tokens 4": "whose texts are read again as they are: leave out --max-new-tokens",
    "analyze {model} {run} -o {out} --system x --no-chat --seed 1": "as they are: leave out --no-chat, --system, --seed",
    "analyze {model} {run} -o {out} --column q --no-thinking --temperature 0": "leave out --column, --no-thinking, --temperature",
    "analyze {model} {run} -o {out} --engine vllm": "as they are: leave out --engine",
    "analyze {model} {prompts} -o {out} --no-generate --temperature 0.3": "--no-generate samples no responses: leave out --temperature",
    "analyze {model} {prompts} -o {out} --no-generate --engine vllm": "--no-generate samples no responses: leave out --engine",
    "analyze {model} {prompts} -o {out} --tensor-parallel 4": "only vLLM spreads a model so (--engine vllm; else --device-map auto)",
    "plot {run} -o {out} --reward nonsense": "unknown reward 'nonsense'",
    "plot {run} -o {out} --kind ,": "no figure was named",
    "report {run} -o {out}.html --reward nonsense": "unknown reward 'nonsense'",
    "report {run} -o {out}.html --segment thinking": "thinking",
    "watch {run} --reward nonsense --no-browser": "unknown reward 'nonsense'",
}


@pytest.mark.parametrize("words", WITHOUT_EFFECT)
def test_options_that_would_change_nothing_are_refused(layerlens: Layerlens, folder: Path, tmp_path: Path, words: str) -> None:
    places = {"model": folder / "model", "run": folder / "run", "prompts": folder / "prompts.txt", "out": tmp_path / "out"}
    one_line(layerlens(*(word.format(**places) for word in words.split())), WITHOUT_EFFECT[words])
    assert not list(tmp_path.iterdir()), "nothing was begun"


@pytest.mark.parametrize("words", WRONG_USAGE)
def test_wrong_usage_is_one_line(layerlens: Layerlens, words: str) -> None:
    ended = layerlens(*words.split())
    one_line(ended)
    assert WRONG_USAGE[words].lower() in ended.err.lower()


def test_warnings_of_ours_are_one_line_and_others_stay_as_they_are() -> None:
    from layerlens.cli.app import _warning_text
    from layerlens.prompts import readers

    assert (
        _warning_text("the switch changes nothing", UserWarning, readers.__file__, 7) == "layerlens: warning: the switch changes nothing\n"
    )
    for category, file in ((UserWarning, pytest.__file__), (FutureWarning, readers.__file__)):
        assert _warning_text("old", category, file, 7).startswith(f"{file}:7: {category.__name__}: old")


def test_ctrl_c_while_the_command_line_is_imported_is_one_line(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def interrupted(name: str, *more: Any) -> Any:
        if name == "layerlens.cli":
            raise KeyboardInterrupt
        return imported(name, *more)

    imported = builtins.__import__
    monkeypatch.setattr(builtins, "__import__", interrupted)
    with pytest.raises(SystemExit) as end:
        main()
    assert (end.value.code, capsys.readouterr().err) == (130, "layerlens: interrupted before it began\n")
