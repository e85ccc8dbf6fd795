"""Commands that a document tells its reader to type, held against what there is."""

from __future__ import annotations

import dataclasses
import re
import shlex
import tomllib
from collections.abc import Iterator
from typing import Any, get_args

import typer
from typer.main import get_command

from layerlens.cli.app import app
from layerlens.train.fields import ScriptArguments
from tests.support.markdown import ROOT, code_blocks, inline_tokens

SHELLS = ("sh", "bash", "console")
ABSENT = "..."
"""Stands for the value of an option that running text names without one."""


def commands(text: str) -> list[list[str]]:
    """The words of each command in the shell blocks of a page, without comments; a continued line is one command."""
    lines = "\n".join(block for shell in SHELLS for block in code_blocks(text, shell)).replace("\\\n", " ").splitlines()
    return [words for line in lines if (words := shlex.split(line, comments=True))]


def inline_commands(text: str) -> list[list[str]]:
    """The words of each `layerlens VERB ...` in the running text."""
    code = (child.content for token in inline_tokens(text) for child in token.children or () if child.type == "code_inline")
    found = [shlex.split(part.replace("[", " ").replace("]", " ")) for part in code if re.match(r"layerlens [a-z]", part)]
    return [[*words, ABSENT] if words[-1].startswith("--") else words for words in found]


def faults(words: list[str]) -> Iterator[str]:
    """What in a command does not exist: a verb, an option, a choice, a field of the configuration, a module, a target, an extra."""
    line = " ".join(words)
    yield from (f"{line}: no extra {name}" for name in _extras(words) if name not in _optional())
    for place, word in enumerate(words):
        following = words[place + 1 :]
        if word == "layerlens" and following and not following[0].startswith("-"):
            yield from _faults_of_verb(following[0], _own(following[1:]))
        elif word == "make" and place == 0:
            yield from (f"no target {name}" for name in following if "=" not in name and name not in _targets())
        elif word == "-m" and following and following[0].split(".")[0] in ("benchmarks", "recipes"):
            path = ROOT / following[0].replace(".", "/")
            if not (path.with_suffix(".py").is_file() or (path / "__main__.py").is_file()):
                yield f"no module {following[0]}"
        elif word.startswith("benchmarks/") and word.endswith((".py", ".sh")) and not (ROOT / word).is_file():
            yield f"no file {word}"


def _own(words: list[str]) -> list[str]:
    """The words up to the end of this command: a redirection, a pipe, or the next command."""
    end = next((place for place, word in enumerate(words) if word in (">", ">>", "|", "&&", ";", "&") or word.endswith(";")), len(words))
    return words[:end]


def _faults_of_verb(verb: str, words: list[str]) -> Iterator[str]:
    group: Any = get_command(app)
    context = typer.Context(group, info_name="layerlens")
    command = group.get_command(context, verb)
    if command is None:
        yield f"no verb {verb}"
        return
    inside = typer.Context(command, info_name=verb, parent=context, ignore_unknown_options=verb == "train")
    try:
        values, _ = command.make_parser(inside).parse_args(list(words))[:2]
    except typer.TyperException as error:
        yield f"layerlens {verb} {' '.join(words)}: {error}"
        return
    for parameter in command.params:
        choices, given = get_args(parameter.type_descriptor.annotation), values.get(parameter.name)
        if (
            choices
            and all(isinstance(choice, str) for choice in choices)
            and isinstance(given, str)
            and not set(given.split("|")) <= {*choices, ABSENT}
        ):
            yield f"layerlens {verb}: {parameter.name} is one of {', '.join(choices)}, not {given}"
    if verb == "train":
        known = {field.name for cls in (_config(), ScriptArguments) for field in dataclasses.fields(cls)}
        known |= {"config", "help", "internal_steps", "monitor_steps"}
        named = (word[2:].partition("=")[0] for word in words if word.startswith("--"))
        yield from (f"layerlens train: no field {name}" for name in named if name not in known)


def _config() -> Any:
    from layerlens.train import BuPOConfig

    return BuPOConfig


def _extras(words: list[str]) -> set[str]:
    return {name.strip() for word in words for group in re.findall(r"layerlens-policy\[([\w, -]+)\]", word) for name in group.split(",")}


def _optional() -> set[str]:
    return set(tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["optional-dependencies"])


def _targets() -> set[str]:
    return set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.M))
