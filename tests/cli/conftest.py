"""The command, and a folder with a model, prompts and a finished run."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

import layerlens as ll
from layerlens.cli import main
from tests.support.command_line import Ended, Layerlens
from tests.support.tiny_models import tiny_model, tiny_tokenizer


@pytest.fixture
def layerlens(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Layerlens:
    """The command, run in this process: exit code, stdout and stderr."""

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
