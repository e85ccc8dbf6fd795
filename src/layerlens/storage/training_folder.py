"""What `layerlens train` leaves beside the model, read as it stands: which layers were trained, to what end, how long, on which prompts."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from layerlens.errors import RunError

SCHEDULE = "schedule.json"
"""The file that says which layer is trained when."""
SETTINGS = "settings.json"
"""The file that holds every setting of the training."""
STATE = "trainer_state.json"
"""The trainer's own file, with its log."""

OLD_KEYS = {"rollout_steps": "rollouts", "first_step": "first_optimizer_step", "last_step": "last_optimizer_step"}
"""From the keys of a phase in old files, which did not say which steps they count, to the keys that are written now."""

LAYERS = re.compile(r"all|[1-9]\d*(-\d+)?(,\d+(-\d+)?)*")
"""How `schedule.json` names the layers that are trained."""


@dataclass(frozen=True)
class TrainedAs:
    """How the model in a training folder was trained.

    Attributes:
        layers: the layers whose weights alone were trained, as "3" or "1-3,7"; or "all".
        objective: what was trained, in words; "final policy" for GRPO throughout.
        steps: optimizer steps; None if the folder does not say.
        seed: of the training; None if the folder does not say.
        rollout: answers in a rollout, of all processes together; None if the folder does not say, like the next.
        learning_rate: the largest of its schedule; factors of layers multiply it.
    """

    layers: str
    objective: str
    steps: int | None
    seed: int | None
    rollout: int | None = None
    learning_rate: float | None = None


def trained_as(folder: str | Path) -> TrainedAs | None:
    """How the model in a folder was trained: in a training's output folder, or in a checkpoint of it.

    None for a model that does not come from `layerlens train`, and if what that left is damaged: a model can be read without it.
    """
    place = Path(folder).expanduser()
    file = _file_of(place, SCHEDULE)
    if file is None:
        return None
    try:
        schedule = read_schedule(file)
        phases = [_phase(phase, schedule) for phase in schedule["phases"]]
        last = schedule["phases"][-1]["rollouts"] if phases else 0
        objective = [*phases, *([] if last is None else ["final policy"]), *signals(schedule)]
        steps = read_state(place / STATE)["global_step"] if (place / STATE).is_file() else None
    except (RunError, KeyError, TypeError, ValueError):
        return None
    layers, seed = schedule.get("train_layers", "all"), schedule.get("seed")
    if not isinstance(layers, str) or not LAYERS.fullmatch(layers) or not isinstance(seed, int | None):
        return None
    settings = _settings_of(place)
    rollout, rate = settings.get("generation_batch_size"), settings.get("learning_rate")
    rollout, rate = rollout if isinstance(rollout, int) else None, rate if isinstance(rate, float) else None
    return TrainedAs(layers, ", ".join(objective), steps, seed, rollout, rate)


def prompted_with(folder: str | Path) -> tuple[str | None, bool | None]:
    """The system message and `enable_thinking` of the prompts that the model in a folder was trained on; None for what none was given.

    Both None for a model that does not come from `layerlens train`, and if what that left is damaged.
    """
    settings = _settings_of(Path(folder).expanduser())
    system, template = settings.get("system"), settings.get("chat_template_kwargs")
    thinking = template.get("enable_thinking") if isinstance(template, dict) else None
    return system if isinstance(system, str) else None, thinking if isinstance(thinking, bool) else None


def _settings_of(place: Path) -> dict[str, Any]:
    """The settings of the training that left its model in a folder; empty if it left none, or damaged ones."""
    file = _file_of(place, SETTINGS)
    try:
        found = None if file is None else _read_object(file).get("settings")
    except RunError:
        return {}
    return found if isinstance(found, dict) else {}


def _file_of(place: Path, name: str) -> Path | None:
    """A file of the training that left its model in a folder, which may be one of its checkpoints; None if there is none."""
    folders = [place, place.parent] if place.name.startswith("checkpoint-") else [place]
    return next((folder / name for folder in folders if (folder / name).is_file()), None)


def _phase(phase: Mapping[str, Any], schedule: Mapping[str, Any]) -> str:
    length = "" if phase["rollouts"] is None else f" for {phase['rollouts']:g} rollout{'' if phase['rollouts'] == 1 else 's'}"
    lens = schedule.get("lens", "logit")
    return f"policy of layer {phase['layer']}{length} (norm {schedule.get('norm')}{'' if lens == 'logit' else f', {lens}'})"


def signals(schedule: Mapping[str, Any]) -> list[str]:
    """Distillation and token mask, in words; empty if there is neither."""
    distillation, tokens = (schedule.get(name) for name in ("distillation", "token_mask"))
    told = []
    if distillation:
        told.append(f"layer {distillation['layers']} distilled (λ = {distillation['lambda']:g}, weights {distillation['weights']})")
    if tokens:
        at = "" if tokens["layer"] is None else f" at layer {tokens['layer']}"
        told.append(f"tokens: the {tokens['quantile']:.0%} of largest {tokens['signal']}{at}")
    return told


def read_schedule(file: Path) -> dict[str, Any]:
    """`schedule.json`, with the keys of now whichever version wrote it. Raises RunError if it cannot be read or is damaged."""
    schedule = _read_object(file)
    phases = schedule.get("phases")
    if not isinstance(phases, list) or not all(isinstance(phase, dict) for phase in phases):
        raise RunError(f"{file} is damaged: expected a list of phases, got {phases!r}")
    return {**schedule, "phases": [{OLD_KEYS.get(key, key): value for key, value in phase.items()} for phase in phases]}


def read_state(file: Path) -> dict[str, Any]:
    """`trainer_state.json`. Raises RunError if it cannot be read or is damaged."""
    state = _read_object(file)
    if not {"global_step", "log_history"} <= state.keys():
        raise RunError(f"{file} is no trainer state: global_step or log_history is missing")
    if not isinstance(state["global_step"], int):
        raise RunError(f"{file} is damaged: expected a whole number for global_step, got {state['global_step']!r}")
    return state


def _read_object(file: Path) -> dict[str, Any]:
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise RunError(f"{file} cannot be read ({error})") from error
    if not isinstance(found, dict):
        raise RunError(f"{file} is damaged: expected an object, got {type(found).__name__}")
    return found
