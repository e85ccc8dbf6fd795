"""Training runs: what the monitor measured at every snapshot, and what the trainer logged, for playback."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from layerlens.report.arrays import plain_list
from layerlens.results.training_log import HIGH, LOW, TrainingLog

BY_LAYER = {
    "entropy/layer": ("Entropy of the residual stream (resid_post)", "nats"),
    "entropy/attn": ("Entropy of attention's output", "nats"),
    "entropy/ffn": ("Entropy of the FFN's output", "nats"),
    "entropy_change/layer": ("ΔS of the layer", "nats"),
    "entropy_change/attn": ("ΔS of attention", "nats"),
    "entropy_change/ffn": ("ΔS of the FFN", "nats"),
    "similarity/to": ("Similarity of the watched layer to the layers above it", ""),
    "kl/to": ("KL from the watched layer's policy to the policies above it", "nats"),
    "js_to_final/layer": ("JS from the layer's policy to the final policy, norm final", "bits"),
    "drift/layer": ("Drift of the weights, ‖W − W₀‖ / ‖W₀‖", ""),
}
"""Columns of the monitor with a number per layer: how they begin, what they are, and their unit."""

BY_STEP = {
    "reward": ("Reward", ""),
    "policy_entropy": ("Entropy of the final policy", "nats"),
    "policy_entropy/thinking": ("Entropy of the final policy, thinking", "nats"),
    "policy_entropy/answer": ("Entropy of the final policy, answer", "nats"),
    "settling_depth": ("Settling depth, norm final", "layers"),
    "settling_depth/thinking": ("Settling depth of thinking, norm final", "layers"),
    "settling_depth/answer": ("Settling depth of the answer, norm final", "layers"),
    "perplexity": ("Perplexity of the final policy", ""),
    "response_length": ("Length of responses", "tokens"),
    "similarity/above": ("Refinement: similarity of the watched layer to those above", ""),
    "kl/above": ("KL from the watched layer's policy to those above", "nats"),
    "stability/answers": ("Stability of answers", ""),
    "stability/entropy_path": ("Stability of the entropy path", ""),
    "completions/mean_length": ("Length of completions, as logged", "tokens"),
    "entropy": ("Entropy of the final policy, as logged", "nats"),
}
"""Columns of the monitor or the log with one number per step: what they are, and their unit."""


def trainings(logs: Sequence[TrainingLog]) -> dict[str, Any]:
    """Training runs that are overlaid, ready for JSON; a number per layer is steps × layers."""
    names = [log.name for log in logs]
    numbered = [f"{name} #{number}" if names.count(name) > 1 else name for number, name in enumerate(names, 1)]
    return {
        "by_layer": [[key, *about] for key, about in BY_LAYER.items()],
        "by_step": [[key, *about] for key, about in BY_STEP.items()],
        "runs": [_training(log, name) for log, name in zip(logs, numbered, strict=True)],
    }


def _training(log: TrainingLog, name: str) -> dict[str, Any]:
    monitor = log.monitor
    layers = {key: found for key in BY_LAYER if (found := _by_layer(monitor, key))}
    series = {}
    for key in BY_STEP:
        frame = monitor if key in monitor else log.log
        if key in frame:
            series[key] = {"steps": [int(step) for step in frame["step"]], **_with_interval(frame, [key], flat=True)}
    trained = [f"layer {layer}, steps {first} to {last}" for first, last, layer in log.internal]
    facts = [
        ("model", log.model),
        ("norm of the internal policies", log.norm or "not known: no monitor"),
        ("probe", f"{log.problems} problems, mean of per-sample means, 95% bootstrap interval" if log.problems else "no monitor"),
        ("internal phases", ", ".join(trained) or "none: the final policy is trained throughout"),
        *([("objective", log.objective)] if log.objective else []),
        ("watched layer", str(log.watched) if log.watched else "none"),
        ("snapshots", str(len(monitor)) if len(monitor) else "none: train with --monitor_every N"),
        ("folder", str(log.path or "")),
    ]
    return {
        "name": name,
        "facts": facts,
        "steps": [] if monitor.empty else [int(step) for step in monitor["step"]],
        "phases": [list(phase) for phase in log.internal],
        "by_layer": layers,
        "by_step": series,
    }


def _by_layer(monitor: pd.DataFrame, key: str) -> dict[str, Any]:
    """The layers that columns `key`_1, `key`_2, ... are of, and their values; empty if there are none."""
    columns = {int(found[1]): str(column) for column in monitor if (found := re.fullmatch(rf"{re.escape(key)}_([0-9]+)", str(column)))}
    if not columns:
        return {}
    layers = sorted(columns)
    return {"layers": layers, **_with_interval(monitor, [columns[layer] for layer in layers])}


def _with_interval(frame: pd.DataFrame, columns: Sequence[str], *, flat: bool = False) -> dict[str, Any]:
    """`mean`, and `low` and `high` if the frame has them: steps × columns, or steps alone."""
    parts = {}
    for part, end in (("mean", ""), ("low", LOW), ("high", HIGH)):
        if all(column + end in frame for column in columns):
            values = frame[[column + end for column in columns]].to_numpy(np.float64)
            parts[part] = plain_list(values[:, 0] if flat else values)
    return parts
