"""A training folder, finished or not: what its monitor saw, what its trainer logged, and which layer was trained when."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path
from typing import Any

import pandas as pd

from layerlens.errors import RunError
from layerlens.results.folder import RunFolder

SUMMARY = "summary.jsonl"
STATE = "trainer_state.json"
PHASE = "bupo/internal_layer"
Phase = tuple[int, int, int]


@dataclass(frozen=True)
class TrainingLog:
    """What a training run left behind.

    Attributes:
        name: of the folder.
        monitor: a row per look into the model, by optimizer `step` (0: before the first). Empty where none was taken.
        log: a row per entry of the trainer's log; the one at step s covers the optimizer steps since the entry before it.
            Empty where no checkpoint has been written yet.
        internal: phases of the internal policy in order, each (first optimizer step, last, layer), steps counted from 1 as the
            trainer logs them. Empty where the whole policy is trained throughout, or where `log` is empty.
        manifest: of the first look's Run: model, norm, probe problems. Empty where there is no monitor.
    """

    name: str
    monitor: pd.DataFrame
    log: pd.DataFrame
    internal: list[Phase]
    manifest: Mapping[str, Any] = field(default_factory=dict)

    @property
    def model(self) -> str:
        """Name of the model that is trained; the folder's where nothing tells."""
        return str(self.manifest["model"]["name"]) if self.manifest else self.name

    @property
    def norm(self) -> str | None:
        """Norm in front of the internal policies that the monitor looks at."""
        return str(self.manifest["config"]["norm"]) if self.manifest else None

    @property
    def n_layers(self) -> int | None:
        """Blocks of the model, L."""
        return int(self.manifest["model"]["n_layers"]) if self.manifest else None

    @property
    def problems(self) -> int | None:
        """Problems of the fixed probe set."""
        return int(self.manifest["samples"]["count"]) if self.manifest else None

    @property
    def watched(self) -> int | None:
        """The layer whose relations to the layers above are watched: the first that is trained, or the last of all."""
        layer = self.manifest["config"].get("kl_from_layer") if self.manifest else None
        return None if layer is None else int(layer)


def open_training(path: str | Path) -> TrainingLog:
    """Opens the output folder of a training run, finished, at work or interrupted.

    The log is the newest of `trainer_state.json` and those of the checkpoints.

    Raises:
        RunError: no such folder, neither a monitor nor a log in it, or a damaged file.
    """
    folder = Path(path).expanduser()
    if not folder.is_dir():
        raise RunError(f"{folder}: no such training folder; it is the output_dir of `layerlens train`")
    monitor, log = _monitor(folder / "monitor" / SUMMARY), _log(folder)
    if monitor.empty and log.empty:
        raise RunError(
            f"{folder} holds neither monitor/{SUMMARY} nor a {STATE} (its own or a checkpoint's): is it the output_dir of "
            "`layerlens train`, and has a first look or checkpoint been written?"
        )
    manifest = {} if monitor.empty else _manifest(folder / "monitor")
    watched = manifest["config"].get("kl_from_layer") if manifest else None
    return TrainingLog(folder.resolve().name, monitor, log, internal_phases(log, watched), manifest)


def internal_phases(log: pd.DataFrame, first_layer: int | None = None) -> list[Phase]:
    """Phases of the internal policy, read off a trainer's log; exact where every step is logged.

    An entry is the mean over the steps it covers. One that spans a switch is divided by its mean: that is one that is no whole
    number, or falls short of the layer before, as phases go bottom-up.

    Args:
        log: with columns `step` and `bupo/internal_layer` (0: the whole policy); without the latter there are no phases.
        first_layer: which layer is trained first, to divide the first entry.

    Raises RunError where the log is too sparse to tell.
    """
    if PHASE not in log.columns:
        return []
    entries = log[["step", PHASE]].dropna()
    steps, values = entries["step"].astype(int).tolist(), entries[PHASE].astype(float).tolist()
    layers: list[int] = []
    for place, (step, value) in enumerate(zip(steps, values, strict=True)):
        covered = step - len(layers)
        before = layers[-1] if layers else first_layer
        if value == round(value) and (covered == 1 or value == 0 or before is None or value >= before):
            layers += [round(value)] * covered
            continue
        after = next((round(later) for later in values[place + 1 :] if later == round(later)), 0)
        share = None if before is None or before == after else (value - after) / (before - after)
        if before is None or share is None or not 0 < share < 1:
            raise RunError(
                f"the log entry of step {step} covers {covered} steps with a mean internal layer of {value:g}, too many to tell when "
                "the phases change; train with logging_steps=1"
            )
        first = round(share * covered)
        layers += [before] * first + [after] * (covered - first)
    phases, start = [], 1
    for layer, run in groupby(layers):
        length = len(list(run))
        if layer:
            phases.append((start, start + length - 1, layer))
        start += length
    return phases


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
    # evaluations and the closing summary are no training steps
    return _by_step([entry for entry in newest["log_history"] if "reward" in entry])


def _state(file: Path) -> dict[str, Any]:
    try:
        state = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise RunError(f"{file} can not be read ({error})") from error
    if not isinstance(state, dict) or not {"global_step", "log_history"} <= state.keys():
        raise RunError(f"{file} is no trainer state: global_step or log_history is missing")
    return state


def _by_step(rows: list[dict[str, Any]]) -> pd.DataFrame:
    """Numbers by step; of two rows of one step the later counts."""
    latest = {int(row["step"]): row for row in rows}
    frame = pd.DataFrame([latest[step] for step in sorted(latest)])
    return frame.astype(dict.fromkeys(frame.columns.drop("step"), "float64")) if len(frame) else frame


def _manifest(monitor: Path) -> dict[str, Any]:
    """run.json of the first look."""
    looks = sorted(folder for folder in monitor.glob("step-*") if (folder / "run.json").exists())
    if not looks:
        raise RunError(f"{monitor} holds {SUMMARY} but no step-* folder with a run.json, which says what model and norm were looked at")
    return RunFolder(looks[0]).manifest()
