"""Pages that no file of the repository holds: listings of source, and the commands as the program itself describes them."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import typer
from typer.main import get_command

from layerlens.cli.app import app
from recipes.site.sources import ROOT

LANGUAGES = {".py": "python", ".cpp": "cpp", ".hpp": "cpp", ".yaml": "yaml", ".yml": "yaml", ".toml": "toml", ".jsonl": "json"}

_UNSEARCHED = "---\nsearch:\n  exclude: true\n---\n\n"


def source_page(file: str) -> str:
    """The listing of a text file, or of what a folder holds."""
    path = ROOT / file
    if path.is_dir():
        listed = "\n".join(f"- `{entry.name}{'/' if entry.is_dir() else ''}`" for entry in _visible(path))
        return f"{_UNSEARCHED}# {file}/\n\n{listed}\n"
    language = LANGUAGES.get(path.suffix, "text")
    return f"{_UNSEARCHED}# {file}\n\n````{language}\n{path.read_text(encoding='utf-8').rstrip()}\n````\n"


def _visible(folder: Path) -> list[Path]:
    return sorted(entry for entry in folder.iterdir() if not entry.name.startswith((".", "__pycache__")))


def commands_page() -> str:
    """Every verb with its arguments and options, read from the program."""
    group: Any = get_command(app)
    context = typer.Context(group, info_name="layerlens")
    parts = ["# Commands", group.help, "Made from the program itself when the site is built: `layerlens VERB --help` says the same."]
    for name in group.list_commands(context):
        parts += _command(name, group.get_command(context, name), context)
    return "\n\n".join(parts) + "\n"


def _command(name: str, command: Any, parent: typer.Context) -> list[str]:
    context = typer.Context(command, info_name=name, parent=parent)
    usage = " ".join(["layerlens", name, *command.collect_usage_pieces(context)])
    records: dict[str, list[tuple[str, str]]] = {"argument": [], "option": []}
    for parameter in command.get_params(context):
        if (record := parameter.get_help_record(context)) is not None:
            records[parameter.param_type_name].append(record)
    rows = [f"| `{label}` | {_cell(text)} |" for kind in records.values() for label, text in kind]
    return [f"## {name}", f"```text\n{usage}\n```", command.help.replace("\n- ", "\n\n- ", 1), "\n".join(["| | |", "|---|---|", *rows])]


def _cell(text: str) -> str:
    """A help text in one line, in which a bracket is no link and a bar no end of the cell."""
    return re.sub(r"([|\[\]])", r"\\\1", " ".join(text.split()))
