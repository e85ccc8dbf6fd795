"""Help, version and how option texts are read."""

from __future__ import annotations

import re

import pytest
import typer

import layerlens as ll
from layerlens.cli.app import app
from layerlens.cli.options import parse_layers, parse_names
from layerlens.errors import SelectionError
from tests.support.command_line import Layerlens

VERBS = ("analyze", "select", "compare", "check")


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
        return re.sub(r"(?m)^- |[\s│`•*]", "", text)  # without the marks of lists, code and bold

    monkeypatch.setenv("COLUMNS", "120")
    shown = layerlens(verb, "--help").out
    assert f"Usage: layerlens {verb} " in shown
    assert "[[" not in shown
    command = typer.main.get_command(app).commands[verb]  # type: ignore[attr-defined]
    for text in (command.help, *(parameter.help for parameter in command.params if not parameter.hidden)):
        assert bare(text) in bare(shown), text


def test_layers_and_names_as_texts() -> None:
    assert parse_layers("all") == "all"
    assert parse_layers("1-3, 7,9-9") == [1, 2, 3, 7, 9]
    assert parse_names("all") == "all"
    assert parse_names(" a, b ,") == ["a", "b"]
    for wrong in ("", "x", "1-", "-1", "1--3", "²", "1-2-3", "1.5", "1-99999999999", "١"):
        with pytest.raises(SelectionError, match="like 1-6,12"):
            parse_layers(wrong)
