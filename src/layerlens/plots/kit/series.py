"""What plots ask of training logs: numbers over the optimizer steps, with errors that name what a log lacks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from layerlens.errors import SelectionError
from layerlens.results.training_log import CHANGE, HIGH, LOW, TrainingLog


@dataclass(frozen=True)
class Series:
    """One number over the optimizer steps, with its interval.

    Attributes:
        steps: optimizer steps, rising.
        values: one per step.
        low, high: ends of the interval of each value, NaN if it has none.
        dense: whether the values come from the trainer's log, not from snapshots of the monitor.
    """

    steps: np.ndarray
    values: np.ndarray
    low: np.ndarray
    high: np.ndarray
    dense: bool

    @property
    def has_interval(self) -> bool:
        return bool((np.isfinite(self.low) & np.isfinite(self.high)).any())


def as_logs(logs: TrainingLog | Sequence[TrainingLog]) -> list[TrainingLog]:
    """One training log or several as a list. Raises SelectionError if there is none."""
    listed = [logs] if isinstance(logs, TrainingLog) else list(logs)
    if not listed:
        raise SelectionError("no training log to draw: pass at least one, as open_training gives it")
    return listed


def column(frame: pd.DataFrame, name: str, dense: bool = False) -> Series:
    """A column of the monitor or of the log, at the steps that have a value."""
    ends = frame.reindex(columns=["step", name, name + LOW, name + HIGH]).dropna(subset=[name])
    values, low, high = (ends[key].to_numpy(np.float64) for key in (name, name + LOW, name + HIGH))
    return Series(ends["step"].to_numpy(np.int64), values, low, high, dense)


def series_of(log: TrainingLog, metric: str) -> Series:
    """The column of that name in the monitor, else in the log. Raises SelectionError if neither has one."""
    for frame, dense in ((log.monitor, False), (log.log, True)):
        if metric in frame.columns and metric != "step" and frame[metric].notna().any():
            return column(frame, metric, dense)
    there = [
        name
        for frame in (log.monitor, log.log)
        for name in frame.columns
        if name != "step" and not name[-1].isdigit() and not name.endswith((LOW, HIGH, CHANGE))
    ]
    lacking = "" if len(log.monitor) else "; it has no monitor: train with monitor_every"
    lacking = lacking if len(log.log) else "; it has no log yet: wait for its first checkpoint"
    if metric.startswith("stability/") and len(log.monitor):
        lacking = "; train with monitor_repeats of 2 or more"
    raise SelectionError(
        f"the training {log.name} has no {metric!r}{lacking}. It has {', '.join(there[:20])}{', ...' if len(there) > 20 else ''}"
    )


def by_layer(log: TrainingLog, prefix: str) -> tuple[np.ndarray, list[int], np.ndarray]:
    """The monitor's columns `<prefix><layer>`.

    Returns:
        The steps of the snapshots, the layers from the first to the last that has such a column, and the values, layer × snapshot.

    Raises:
        SelectionError: the run has no monitor, or its monitor has no such column.
    """
    if log.monitor.empty:
        raise SelectionError(f"the training {log.name} has no monitor: train with monitor_every")
    names = [name for name in log.monitor.columns if name.startswith(prefix) and name.removeprefix(prefix).isdigit()]
    if not names:
        watched = f": it watched layer {log.watched}, which has none above" if prefix.endswith("to_") else ""
        raise SelectionError(f"the monitor of {log.name} holds no {prefix}*{watched}")
    numbers = [int(name.removeprefix(prefix)) for name in names]
    layers = list(range(min(numbers), max(numbers) + 1))
    values = log.monitor.reindex(columns=[f"{prefix}{layer}" for layer in layers]).to_numpy(np.float64).T
    return log.monitor["step"].to_numpy(np.int64), layers, values


def ends_by_layer(log: TrainingLog, prefix: str, layers: list[int], suffix: str) -> np.ndarray:
    """The monitor's columns `<prefix><layer><suffix>`, layer × snapshot; NaN if there are none."""
    ends: np.ndarray = log.monitor.reindex(columns=[f"{prefix}{layer}{suffix}" for layer in layers]).to_numpy(np.float64).T
    return ends
