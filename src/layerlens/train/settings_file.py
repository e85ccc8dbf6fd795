"""`settings.json` of a training: what it was started with, and what a run that went on with it changed."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from transformers import TrainerCallback

from layerlens.errors import TrainingError
from layerlens.storage.files import write_text
from layerlens.storage.training_folder import SETTINGS
from layerlens.train.fields import ScriptArguments

if TYPE_CHECKING:
    from layerlens.train.config import BuPOConfig

FIXED = (
    "model", "problems", "problems_limit", "problems_split", "problems_seed", "problems_difficulties", "max_prompt_length", "system",
    "chat_template", "lora_rank", "lora_alpha", "seed",
)  # fmt: skip
"""What a run that goes on cannot change: its weights, and the order of its problems."""
OF_THE_COMMAND = ("resume", "output_dir", "run_name", "logging_dir")
"""What says nothing of the training itself."""
Changes = dict[str, tuple[Any, Any]]
"""Name of a setting -> what it was, and what it is."""


def settings_to_keep(script: ScriptArguments, args: BuPOConfig) -> dict[str, Any]:
    """Every setting of a run as JSON has it."""
    found = {**asdict(script), **json.loads(args.to_json_string())}
    return {name: value for name, value in found.items() if name not in OF_THE_COMMAND}


def changed_settings(folder: Path, settings: dict[str, Any]) -> Changes:
    """What a run that goes on with the one in `folder` changes; nothing if that left no file.

    Raises TrainingError for a setting that it cannot change, and for a damaged file.
    """
    file = folder / SETTINGS
    if not file.is_file():
        return {}
    try:
        before = json.loads(file.read_text(encoding="utf-8"))["settings"]
        changes = {name: (before[name], value) for name, value in settings.items() if name in before and before[name] != value}
    except (ValueError, TypeError, KeyError) as error:
        raise TrainingError(f"{file} is damaged ({error}): remove it to go on without comparing settings") from error
    for name in FIXED:
        if name in changes:
            old, new = map(json.dumps, changes[name])
            raise TrainingError(
                f"{folder} was trained with {name} {old}, and {new} would be another run: restore it, or take a new output_dir"
            )
    return changes


def describe_changes(changes: Changes) -> str:
    """In words: "learning_rate 0.0002 -> 1e-06, reward math -> boxed"."""
    return ", ".join(f"{name} {_word(old)} -> {_word(new)}" for name, (old, new) in changes.items())


def keep_settings(folder: Path, settings: dict[str, Any], after: int, changes: Changes) -> None:
    """Writes the file of a run that starts, or adds to it what a run changes that goes on `after` so many optimizer steps."""
    file = folder / SETTINGS
    kept: dict[str, Any] = {"settings": settings, "resumed": []}
    if after and file.is_file():
        kept = json.loads(file.read_text(encoding="utf-8"))
        kept["settings"] |= {name: new for name, (_, new) in changes.items()}
    if after:
        kept["resumed"].append({"after_optimizer_step": after, "changed": {name: list(both) for name, both in changes.items()}})
    write_text(file, json.dumps(kept, indent=1, ensure_ascii=False) + "\n")


class KeepSettings(TrainerCallback):  # type: ignore[misc]
    """Calls `keep_settings` when a run begins, past everything that may refuse it."""

    def __init__(self, folder: Path, settings: dict[str, Any], changes: Changes):
        self.folder, self.settings, self.changes = folder, settings, changes

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.is_world_process_zero:
            keep_settings(self.folder, self.settings, state.global_step, self.changes)


def _word(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)
