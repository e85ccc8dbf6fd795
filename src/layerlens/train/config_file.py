"""A training configuration from a YAML file, or a shipped one, and the command line: `ScriptArguments` and a `BuPOConfig`."""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import fields
from difflib import get_close_matches
from pathlib import Path
from traceback import walk_tb
from typing import TYPE_CHECKING, Any, NoReturn, get_type_hints

from layerlens.errors import TrainingError, message_of
from layerlens.storage.plain import from_plain
from layerlens.train.fields import BuPOFields, ScriptArguments
from layerlens.train.old_names import OLD_NAMES, with_new_names
from layerlens.train.trl_contract import require_trl_contract
from layerlens.types import LARGEST_SEED, MOST

if TYPE_CHECKING:
    from layerlens.train.config import BuPOConfig

CONFIGS = Path(__file__).parent / "configs"
HELP = "see layerlens train --help"
NUMBERS = ("tag:yaml.org,2002:int", "tag:yaml.org,2002:float")
"""YAML's names of them."""


def shipped_configs() -> list[str]:
    """Names of the configurations that come with layerlens."""
    return sorted(file.stem for file in CONFIGS.glob("*.yaml"))


def read_config(name: str, words: Sequence[str]) -> tuple[ScriptArguments, BuPOConfig]:
    """Reads a configuration file; a field that is also among the words of the command line is taken from there.

    Args:
        name: path of a YAML file, or the name of a shipped one.
        words: as they were typed: --field value ...

    Raises TrainingError for a file that cannot be read, a field that does not exist, a value that does not suit its field, and
    settings that contradict each other.
    """
    require_trl_contract()
    from trl import TrlParser

    from layerlens.train.config import BuPOConfig

    class Parser(_OneLineErrors, TrlParser):  # type: ignore[misc]
        pass

    file = _config_path(name)
    settings, environment = _read_yaml(file)
    # an abbreviation would mean another field as soon as TRL has a new one
    parser = Parser((ScriptArguments, BuPOConfig), allow_abbrev=False)
    known = [each.name for half in (ScriptArguments, BuPOConfig) for each in fields(half) if each.init]
    # unknown fields first: building a configuration prints other libraries' warnings
    _refuse_unknown(parser.set_defaults_with_config(**settings), known, f"{file}: ")
    _require_kinds(settings, file)
    words = _rename_options(words)
    _refuse_unknown(parser.parse_known_args(words)[1], known)
    os.environ.update(environment)
    with settings_in_one_line(f"{name}: "):
        script, args = parser.parse_args_into_dataclasses(words)
    for name, value in {**vars(script), **vars(args)}.items():
        most = LARGEST_SEED if "seed" in name else MOST
        if isinstance(value, int) and abs(value) > most:
            raise TrainingError(f"{name} must be at most {most:,}, got {value}")
    if not script.model:
        raise TrainingError(f"{file}: which model? give model: in the file or --model")
    return script, args


@contextmanager
def settings_in_one_line(where: str = "", while_true: Callable[[], bool] = lambda: True) -> Iterator[None]:
    """Inside, an error of TRL, transformers or torch about a setting that it cannot honour becomes a TrainingError of one line.

    An error that is raised in layerlens stays what it is, and so does one that is raised when `while_true()` is no longer so.
    """
    try:
        yield
    except (ValueError, TypeError, ImportError, NotImplementedError, ArithmeticError) as error:
        innermost = [frame.f_globals.get("__name__", "") for frame, _ in walk_tb(error.__traceback__)][-1]
        if innermost.partition(".")[0] == "layerlens" or not while_true():
            raise
        raise TrainingError(f"{where}{message_of(error, 500)} ({type(error).__name__})") from error


def settings_of(name: str) -> dict[str, Any]:
    """The fields that a configuration file sets, by its path or, if it is shipped, by its name. Raises TrainingError as `read_config`."""
    return _read_yaml(_config_path(name))[0]


def _config_path(name: str) -> Path:
    file = CONFIGS / f"{name}.yaml" if name in shipped_configs() else Path(name)
    if not file.is_file():
        raise TrainingError(f"{name}: no such configuration file; shipped are {', '.join(shipped_configs())}")
    return file


class _OneLineErrors:
    def error(self, message: str) -> NoReturn:
        """Raises TrainingError; argparse's own method prints the usage of some two hundred fields and exits."""
        raise TrainingError(f"{message.rstrip('.')}; {HELP}")


class _OptionParser(_OneLineErrors, argparse.ArgumentParser):
    pass


def _read_yaml(file: Path) -> tuple[dict[str, Any], dict[str, str]]:
    """The fields that a configuration file sets, and the environment variables under its `env`, as TRL's files have them."""
    import yaml

    class Loader(yaml.SafeLoader):  # type: ignore[misc]
        def construct_mapping(self, node: Any, deep: bool = False) -> Any:
            """Like SafeLoader's, which takes the last of two values without a word."""
            lines: dict[Any, int] = {}
            for key, _ in node.value:
                line = key.start_mark.line + 1
                if not isinstance(key, yaml.ScalarNode):  # which SafeLoader refuses
                    continue
                if key.value in lines:
                    raise TrainingError(f"{file}: {key.value} is given twice, in lines {lines[key.value]} and {line}: keep one of them")
                lines[key.value] = line
            return super().construct_mapping(node, deep)

        def resolve(self, kind: Any, value: Any, implicit: Any) -> Any:
            """Like SafeLoader's, which reads 4:10 in base 60, as 250."""
            tag = super().resolve(kind, value, implicit)
            return "tag:yaml.org,2002:str" if tag in NUMBERS and ":" in value else tag

    try:
        found = yaml.load(file.read_text(encoding="utf-8"), Loader)
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError) as error:
        raise TrainingError(f"{file}: not YAML ({message_of(error)})") from error
    if not isinstance(found, dict):
        raise TrainingError(f"{file}: expected a field: value on each line, got {type(found).__name__}")
    environment = found.pop("env", {})
    if not isinstance(environment, dict):
        raise TrainingError(f"{file}: expected env to hold a variable: value on each line, got {type(environment).__name__}")
    try:
        settings = with_new_names({str(name): value for name, value in found.items()})
    except TrainingError as error:
        raise TrainingError(f"{file}: {error}") from error
    return settings, {str(name): str(value) for name, value in environment.items()}


def _require_kinds(settings: Mapping[str, Any], file: Path) -> None:
    """Raises TrainingError for a value of another type than its field has; a text is read as the command line reads it."""
    from layerlens.train.config import BuPOConfig

    # of TRL's own fields those of one plain type: the others take more than their annotations say
    numbers = {name: kind for name, kind in get_type_hints(BuPOConfig).items() if kind in (bool, float, int)}
    kinds = numbers | get_type_hints(ScriptArguments) | get_type_hints(BuPOFields)
    for name, value in settings.items():
        if name in kinds and not isinstance(value, str):
            try:
                from_plain(kinds[name], value)
            except (TypeError, ValueError) as error:
                raise TrainingError(f"{file}: {name}: {error}; {HELP}") from error


def _rename_options(words: Sequence[str]) -> list[str]:
    """The words with the new names of fields in place of old ones. Raises TrainingError if both are given and differ."""
    parser = _OptionParser(add_help=False, allow_abbrev=False, argument_default=argparse.SUPPRESS)
    for name in [*OLD_NAMES, *OLD_NAMES.values()]:
        parser.add_argument(f"--{name}", f"--{name.replace('_', '-')}", type=int)
    given, others = parser.parse_known_args(words)
    return [*others, *(word for name, value in with_new_names(vars(given)).items() for word in (f"--{name}", str(value)))]


def _refuse_unknown(words: Sequence[str], known: Sequence[str], where: str = "") -> None:
    """Raises TrainingError for the first of the words that a parser had no field for."""
    if not words:
        return
    if not words[0].startswith("--"):
        raise TrainingError(f"{where}unexpected {words[0]!r}: expected --field value; {HELP}")
    name = words[0].removeprefix("--").partition("=")[0].replace("-", "_")
    close = ", ".join(get_close_matches(name, known))
    raise TrainingError(f"{where}no such field: {name}{f' (close to it: {close})' if close else ''}; {HELP}")
