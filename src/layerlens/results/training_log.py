"""A training folder, finished or not: what its monitor saw, what its trainer logged, and which layer was trained when."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path
from typing import Any

import pandas as pd

from layerlens.errors import RunError, SelectionError
from layerlens.results.folder import RunFolder
from layerlens.results.run import Run, open_run
from layerlens.storage.manifest import RunManifest

FOLDER = "monitor"
SUMMARY = "summary.jsonl"
LOW, HIGH = "/low", "/high"
"""After the name of a mean in a monitor's row: the ends of its 95% bootstrap interval over the probe problems."""
STATE = "trainer_state.json"
SCHEDULE = "schedule.json"
PHASE = "bupo/internal_layer"
Phase = tuple[int, int, int]


@dataclass(frozen=True)
class TrainingLog:
    """What a training run left behind.

    Attributes:
        name: of the folder.
        monitor: a row per look into the model, by optimizer `step` (0: before the first). Empty where none was taken. Beside a
            mean over the probe stand `<its name>/low` and `<its name>/high`, its 95% bootstrap interval over problems.
        log: a row per entry of the trainer's log; the one at step s covers the optimizer steps since the entry before it.
            Empty where no checkpoint has been written yet.
        internal: phases of the internal policy in order, each (first optimizer step, last, layer), steps counted from 1 as the
            trainer logs them. Empty where the whole policy is trained throughout.
        schedule: what `schedule.json` says: phases in rollout and optimizer steps, norm, and how "auto" chose the layer.
        manifest: of the first look's Run: model, norm, probe problems. None if there is no monitor.
        path: the folder.
    """

    name: str
    monitor: pd.DataFrame
    log: pd.DataFrame
    internal: list[Phase]
    schedule: Mapping[str, Any] = field(default_factory=dict)
    manifest: RunManifest | None = None
    path: Path | None = None

    @property
    def model(self) -> str:
        """Name of the model that is trained; the folder's where nothing tells."""
        return self.manifest.model.name if self.manifest else self.name

    @property
    def norm(self) -> str | None:
        """Norm in front of the internal policies that the monitor looks at."""
        return self.manifest.config.norm if self.manifest else None

    @property
    def n_layers(self) -> int | None:
        """Blocks of the model, L."""
        return self.manifest.model.n_layers if self.manifest else None

    @property
    def problems(self) -> int | None:
        """Problems of the fixed probe set."""
        return self.manifest.samples.count if self.manifest else None

    @property
    def watched(self) -> int | None:
        """The layer whose relations to the layers above are watched: monitor_layer, or the first that is trained, or the last of all."""
        return self.manifest.config.kl_from_layer if self.manifest else None

    def snapshot(self, which: int) -> Run:
        """The Run of a look into the model: 0 the first, -1 the last. Raises SelectionError where there is none."""
        if self.path is None or self.monitor.empty:
            raise SelectionError(f"the training {self.name} has no monitor: train with monitor_steps")
        step = int(self.monitor["step"].iloc[which])
        return open_run(self.path / FOLDER / f"step-{step:06d}")


def open_training(path: str | Path) -> TrainingLog:
    """Opens the output folder of a training run, finished, at work or interrupted.

    The log is the newest of `trainer_state.json` and those of the checkpoints.

    Raises:
        RunError: no such folder, neither a monitor nor a log in it, or a damaged file.
    """
    folder = Path(path).expanduser()
    if not folder.is_dir():
        raise RunError(f"{folder}: no such training folder; it is the output_dir of `layerlens train`")
    monitor, log = _monitor(folder / FOLDER / SUMMARY), _log(folder)
    if monitor.empty and log.empty:
        raise RunError(
            f"{folder} holds neither monitor/{SUMMARY} nor a {STATE} (its own or a checkpoint's): is it the output_dir of "
            "`layerlens train`, and has a first look or checkpoint been written?"
        )
    manifest = None if monitor.empty else _manifest(folder / FOLDER)
    schedule = _json(folder / SCHEDULE) if (folder / SCHEDULE).exists() else {}
    internal = _planned(schedule, monitor, log) if schedule else _logged(log)
    return TrainingLog(folder.resolve().name, monitor, log, internal, schedule, manifest, folder)


def is_training(path: str | Path) -> bool:
    """Whether a folder is the output of a training run, rather than a Run."""
    return any((Path(path).expanduser() / name).exists() for name in (FOLDER, SCHEDULE, STATE))


def _planned(schedule: Mapping[str, Any], *frames: pd.DataFrame) -> list[Phase]:
    """The phases of `schedule.json`; one that lasts for the whole run ends with what has been seen of it."""
    seen = max(int(frame["step"].max()) for frame in frames if len(frame))
    try:
        return [(phase["first_step"], phase["last_step"] or max(seen, phase["first_step"]), phase["layer"]) for phase in schedule["phases"]]
    except (KeyError, TypeError) as error:
        raise RunError(f"{SCHEDULE} is damaged: it lacks {error}") from error


def _logged(log: pd.DataFrame) -> list[Phase]:
    """Phases as the log has them, where `schedule.json` is gone and every step was logged."""
    if PHASE not in log.columns:
        return []
    steps, layers = log["step"].tolist(), log[PHASE].tolist()
    if steps != list(range(1, len(steps) + 1)):
        raise RunError(f"{SCHEDULE} is missing, and a log of every few steps does not tell when the phases change")
    runs = [(layer, [step for step, _ in run]) for layer, run in groupby(zip(steps, layers, strict=True), key=lambda entry: entry[1])]
    return [(run[0], run[-1], int(layer)) for layer, run in runs if layer]


def _monitor(file: Path) -> pd.DataFrame:
    """A row per look, by step; None becomes NaN."""
    if not file.exists():
        return pd.DataFrame()
    try:
        rows = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines() if line.strip()]
        return _by_step(rows)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise RunError(
            f"{file} is damaged ({error or type(error).__name__}); each line is one look, a JSON object with its step"
        ) from error


def _log(folder: Path) -> pd.DataFrame:
    """The training entries of the newest trainer state."""
    states = [_state(file) for file in [folder / STATE, *folder.glob(f"checkpoint-*/{STATE}")] if file.exists()]
    if not states:
        return pd.DataFrame()
    newest = max(states, key=lambda state: int(state["global_step"]))
    # evaluations, looks and the closing summary are no training steps; a step on completions of an earlier one has no reward
    return _by_step([entry for entry in newest["log_history"] if "loss" in entry])


def _state(file: Path) -> dict[str, Any]:
    state = _json(file)
    if not {"global_step", "log_history"} <= state.keys():
        raise RunError(f"{file} is no trainer state: global_step or log_history is missing")
    return state


def _json(file: Path) -> dict[str, Any]:
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise RunError(f"{file} can not be read ({error})") from error
    if not isinstance(found, dict):
        raise RunError(f"{file} is damaged: expected an object, got {type(found).__name__}")
    return found


def _by_step(rows: list[dict[str, Any]]) -> pd.DataFrame:
    """Numbers by step; of two rows of one step the later counts."""
    latest = {int(row["step"]): row for row in rows}
    frame = pd.DataFrame([latest[step] for step in sorted(latest)])
    return frame.astype(dict.fromkeys(frame.columns.drop("step"), "float64")) if len(frame) else frame


def _manifest(monitor: Path) -> RunManifest:
    """run.json of the first look."""
    looks = sorted(folder for folder in monitor.glob("step-*") if (folder / "run.json").exists())
    if not looks:
        raise RunError(f"{monitor} holds {SUMMARY} but no step-* folder with a run.json, which says what model and norm were looked at")
    return RunFolder(looks[0]).manifest()
