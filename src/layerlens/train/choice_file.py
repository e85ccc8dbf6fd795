"""The layer that a file names: of `layerlens select --json`, or of a training whose layer `auto` chose."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from layerlens.errors import SelectionError, TrainingError
from layerlens.selection import LayerChoice
from layerlens.storage.training_folder import SCHEDULE, read_schedule

WRITE_ONE = "write one with `layerlens select RUN --json`"


def read_choice(path: str) -> LayerChoice:
    """The choice in a file that `layerlens select RUN --json` has written.

    Raises TrainingError if there is no such file, if it is damaged, if it holds the choices of several runs, and if its
    choice names no layer.
    """
    file = Path(path).expanduser()
    if not file.is_file():
        raise TrainingError(f"internal_layer is a layer from 1, auto, none, or a file of `layerlens select --json`; {path!r} is no file")
    try:
        found = _json_values(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise TrainingError(f"{file} cannot be read as a choice of layer ({error}): {WRITE_ONE}") from error
    runs = [choice for value in found for choice in _choices(value)]
    if len(runs) > 1:
        raise TrainingError(f"{file} holds the choices of {len(runs)} runs, and training needs that of one: {WRITE_ONE}")
    try:
        choice = LayerChoice.from_dict(runs[0] if runs and isinstance(runs[0], dict) else {})
    except SelectionError as error:
        raise TrainingError(f"{file} is damaged or of an earlier version ({error}): {WRITE_ONE}") from error
    if choice.layer is None:
        raise TrainingError(f"{file} names no layer to train ({choice.reason}): give a layer, or choose by another --rule")
    return choice


def kept_choice(folder: Path) -> LayerChoice | None:
    """The choice that a training left in its folder; None if its layer was given by number, and without a `schedule.json`.

    Raises RunError or TrainingError if the file is damaged.
    """
    file = folder / SCHEDULE
    kept = read_schedule(file).get("choice") if file.is_file() else None
    try:
        return None if kept is None else LayerChoice.from_dict(kept)
    except SelectionError as error:
        raise TrainingError(f"{file} is damaged ({error}): name the layer of its phases with internal_layer") from error


def _json_values(text: str) -> list[Any]:
    """The JSON values that stand in a text one after the other. Raises ValueError if there is anything else in it."""
    values, decoder = [], json.JSONDecoder()
    while text := text.strip():
        value, end = decoder.raw_decode(text)
        values.append(value)
        text = text[end:]
    return values


def _choices(value: Any) -> list[Any]:
    """The choices in a JSON value: itself, or the members of a list, or of an object that has one for each model."""
    members = list(value.values()) if isinstance(value, dict) else value
    several = isinstance(members, list) and all(isinstance(member, dict) for member in members)
    return members if several else [value]
