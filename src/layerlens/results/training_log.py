"""A training folder, finished or not: what its monitor measured, what its trainer logged, and which layer was trained when."""

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
from layerlens.results.opened import open_run
from layerlens.results.run import Run
from layerlens.storage.manifest import RunManifest
from layerlens.storage.training_folder import SCHEDULE, STATE, read_schedule, read_state, signals

MONITOR = "monitor"
"""Folder of the snapshots, below the training folder."""
SUMMARY = "summary.jsonl"
"""The monitor's file with a row of numbers for each snapshot."""
LOW, HIGH = "/low", "/high"
"""After the name of a mean in a monitor's row: the ends of its 95% bootstrap interval over the probe problems."""
CHANGE = "/change"
"""After the name of a mean in a monitor's row: the mean less that of the first snapshot; the ends of its interval follow it in turn."""
PHASE = "bupo/internal_layer"
"""Column of the trainer's log: the layer whose internal policy was trained, or 0 for the final policy. An entry that covers several
optimizer steps holds their mean."""
DISTILL = "distill/js_layer_"
"""In front of a layer's number, a column of the trainer's log: mean JS from the layer's policy to the final policy, bits."""
Phase = tuple[int, int, int]
"""First optimizer step, last optimizer step, layer."""


@dataclass(frozen=True)
class TrainingLog:
    """What a training run left behind.

    Attributes:
        name: of the folder.
        monitor: one row for each snapshot of the model, by optimizer `step` (0: before the first). Empty if none was taken. Beside
            a mean over the probe problems stand `<its name>/low` and `<its name>/high`, its 95% bootstrap interval over problems, and
            `<its name>/change`, what it has changed since the first snapshot, with the interval of paired problems, `/change/low` and
            `/change/high`.
        log: one row for each training entry of the trainer's log; the one at step s covers the optimizer steps since the entry
            before it. Empty as long as no checkpoint has been written.
        internal: phases of the internal policy in order, each (first optimizer step, last, layer), steps counted from 1 as the
            trainer logs them. Empty if the final policy is trained throughout.
        schedule: what `schedule.json` says: phases in rollouts and optimizer steps, norm, and how the layer was chosen.
        manifest: of the first snapshot's Run: model, norm, probe problems. None if there is no monitor.
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
        """Name of the model that is trained; the folder's name if there is no monitor to say it."""
        return self.manifest.model.name if self.manifest else self.name

    @property
    def norm(self) -> str | None:
        """Norm in front of the unembedding in the monitor's internal policies."""
        return self.manifest.config.norm if self.manifest else None

    @property
    def n_layers(self) -> int | None:
        """Blocks of the model, L."""
        return self.manifest.model.n_layers if self.manifest else None

    @property
    def problems(self) -> int | None:
        """Number of probe problems, on which every snapshot is taken."""
        return self.manifest.samples.count if self.manifest else None

    @property
    def watched(self) -> int | None:
        """The layer whose similarity and KL to the layers above it the monitor measures: monitor_layer, or its default."""
        return self.manifest.config.kl_from_layer if self.manifest else None

    @property
    def objective(self) -> str:
        """What is trained other than GRPO on every weight, in words; empty if nothing is, beside the phases."""
        layers = self.schedule.get("train_layers")
        alone = [] if layers in (None, "all") else [f"layer{'' if layers.isdigit() else 's'} {layers} alone trained"]
        return ", ".join([*alone, *signals(self.schedule)])

    def snapshot(self, which: int) -> Run:
        """The Run of a snapshot: 0 is the first, -1 the last. Raises SelectionError if there is no monitor."""
        if self.path is None or self.monitor.empty:
            raise SelectionError(f"the training {self.name} has no monitor: train with monitor_every above 0")
        step = int(self.monitor["step"].iloc[which])
        return open_run(self.path / MONITOR / f"step-{step:06d}")


def open_training(path: str | Path) -> TrainingLog:
    """Opens the output folder of a training run: finished, still running, or interrupted.

    The log comes from the newest `trainer_state.json`: the folder's own or a checkpoint's.

    Raises:
        RunError: no such folder, neither a monitor nor a log in it, or a damaged file.
    """
    folder = Path(path).expanduser()
    if not folder.is_dir():
        raise RunError(f"{folder}: no such training folder; it is the output_dir of `layerlens train`")
    monitor, log = read_monitor(folder / MONITOR / SUMMARY), _read_log(folder)
    if monitor.empty and log.empty:
        raise RunError(
            f"{folder} holds neither monitor/{SUMMARY} nor a {STATE} (its own or a checkpoint's): is it the output_dir of "
            "`layerlens train`, and has a first snapshot or checkpoint been written?"
        )
    manifest = None if monitor.empty else _first_manifest(folder / MONITOR)
    schedule = read_schedule(folder / SCHEDULE) if (folder / SCHEDULE).exists() else {}
    internal = _phases_of_schedule(schedule, monitor, log) if schedule else _phases_of_log(log)
    return TrainingLog(folder.resolve().name, monitor, log, internal, schedule, manifest, folder)


def is_training(path: str | Path) -> bool:
    """Whether a folder is the output of a training run, rather than a Run."""
    return any((Path(path).expanduser() / name).exists() for name in (MONITOR, SCHEDULE, STATE))


def _phases_of_schedule(schedule: Mapping[str, Any], *frames: pd.DataFrame) -> list[Phase]:
    """The phases of `schedule.json`; one that lasts for the whole run ends with the last step that a frame holds."""
    seen = max(int(frame["step"].max()) for frame in frames if len(frame))
    try:
        return [
            (phase["first_optimizer_step"], phase["last_optimizer_step"] or max(seen, phase["first_optimizer_step"]), phase["layer"])
            for phase in schedule["phases"]
        ]
    except (KeyError, TypeError) as error:
        raise RunError(f"{SCHEDULE} is damaged: it lacks {error}") from error


def _phases_of_log(log: pd.DataFrame) -> list[Phase]:
    """The phases as the log tells them, which it does only if every step was logged."""
    if PHASE not in log.columns:
        return []
    steps, layers = log["step"].tolist(), log[PHASE].tolist()
    if steps != list(range(1, len(steps) + 1)):
        raise RunError(f"{SCHEDULE} is missing, and a log of every few steps does not tell when the phases change")
    runs = [(layer, [step for step, _ in run]) for layer, run in groupby(zip(steps, layers, strict=True), key=lambda entry: entry[1])]
    return [(run[0], run[-1], int(layer)) for layer, run in runs if layer]


def read_monitor(file: Path) -> pd.DataFrame:
    """A row for each snapshot in `summary.jsonl`, by step; None becomes NaN. Raises RunError if the file is damaged."""
    if not file.exists():
        return pd.DataFrame()
    try:
        rows = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines() if line.strip()]
        return _by_step(rows)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise RunError(
            f"{file} is damaged ({error or type(error).__name__}); each line is one snapshot, a JSON object with its step"
        ) from error


def _read_log(folder: Path) -> pd.DataFrame:
    """The training entries of the newest trainer state."""
    states = {file: read_state(file) for file in [folder / STATE, *folder.glob(f"checkpoint-*/{STATE}")] if file.exists()}
    if not states:
        return pd.DataFrame()
    newest = max(states, key=lambda file: states[file]["global_step"])
    # only training steps have a loss: evaluations, snapshots and the closing summary have none. A reward would be no sign: a step
    # on completions of an earlier step has none
    try:
        return _by_step([entry for entry in states[newest]["log_history"] if "loss" in entry])
    except (ValueError, KeyError, TypeError) as error:
        raise RunError(
            f"{newest} is damaged ({error or type(error).__name__}); each entry of log_history is an object with its step"
        ) from error


def _by_step(rows: list[dict[str, Any]]) -> pd.DataFrame:
    """Numbers by step; of two rows with one step the later one counts."""
    latest = {int(row["step"]): row for row in rows}
    frame = pd.DataFrame([latest[step] for step in sorted(latest)])
    return frame.astype(dict.fromkeys(frame.columns.drop("step"), "float64")) if len(frame) else frame


def _first_manifest(monitor: Path) -> RunManifest:
    """run.json of the first snapshot."""
    snapshots = sorted(folder for folder in monitor.glob("step-*") if (folder / "run.json").exists())
    if not snapshots:
        raise RunError(f"{monitor} holds {SUMMARY} but no step-* folder with a run.json, which says what model and norm it measured")
    return RunFolder(snapshots[0]).manifest()
