"""Output folders as the trainer and its monitor leave them, without training."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from layerlens.results import RunFolder
from layerlens.results.training_log import CHANGE, HIGH, LOW
from layerlens.storage.manifest import AnalysisConfig, ModelInfo, RunManifest, SampleSet


def write_training(
    folder: Path, *, layers: int = 12, layer: int | None = 4, internal: int = 10, steps: int = 40, every: int = 5, repeats: int = 4,
    logged: int = 1, seed: int = 0, checkpoint: bool = False, monitor: bool = True,
) -> Path:  # fmt: skip
    """An output folder as the trainer and its monitor leave it: `layer` is trained for `internal` steps, then all layers."""
    rng = np.random.default_rng(seed)
    depth = np.arange(1, layers + 1) / layers
    watched = layer or layers
    entries: list[dict[str, Any]] = []
    phase = np.where(np.arange(1, steps + 1) <= internal, float(layer or 0), 0.0)
    for step in range(logged, steps + 1, logged):
        gain = 1 / (1 + np.exp(-(step - 0.45 * steps) / (0.12 * steps)))
        entries.append({
            "step": step, "reward": float(np.clip(0.25 + 0.6 * gain + 0.06 * rng.standard_normal(), 0, 1)), "loss": 0.0,
            "entropy": 0.4 - 0.3 * gain, "completions/mean_length": 90 - 30 * gain + 3 * rng.standard_normal(),
            "bupo/internal_layer": float(phase[step - logged : step].mean()),
        })  # fmt: skip
    state = {"global_step": steps, "log_history": [*entries, {"step": steps, "eval_reward": 0.9}, {"step": steps, "train_runtime": 60.0}]}
    place = folder / f"checkpoint-{steps}" if checkpoint else folder
    place.mkdir(parents=True)
    (place / "trainer_state.json").write_text(json.dumps(state))
    span = {"layer": layer, "rollouts": internal, "first_optimizer_step": 1, "last_optimizer_step": internal}
    schedule = {"norm": "none", "optimizer_steps_per_rollout": 1.0, "phases": [span] if layer else [], "choice": None}
    (folder / "schedule.json").write_text(json.dumps(schedule))
    if monitor:
        rows = []
        for step in sorted({*range(0, steps + 1, every), steps}):
            done = step / steps
            inner, outer = min(step, internal) / max(internal, 1), max(step - internal, 0) / max(steps - internal, 1)
            entropy = (
                7 * (1 - depth**3) + 0.3 * rng.standard_normal(layers) * 0.1 - 2.0 * inner * np.exp(-((depth - watched / layers) ** 2) * 40)
            )
            row: dict[str, float | None] = {"step": step}
            row |= {f"entropy/layer_{number}": float(max(value, 0.02)) for number, value in enumerate(entropy - outer * depth, 1)}
            for number in range(1, layers + 1):
                row |= {f"entropy/{module}_{number}": 1.0 + 0.1 * number + 0.01 * step for module in ("attn", "ffn")}
                row[f"js_to_final/layer_{number}"] = float(0.9 * (1 - depth[number - 1]) * (1 - 0.2 * inner))
                row |= {f"entropy_change/{module}_{number}": 0.1 - 0.02 * number + 0.001 * step for module in ("attn", "ffn", "layer")}
                if number > watched:
                    row[f"similarity/to_{number}"] = float(np.exp(-2 * (depth[number - 1] - watched / layers)) * (0.7 + 0.2 * inner))
                    row[f"kl/to_{number}"] = float(6 * (depth[number - 1] - watched / layers) * (1 - 0.3 * inner + 0.2 * outer) + 0.1)
                moved = inner * (number <= watched) * 0.02 if layer else 0.0
                row[f"drift/layer_{number}"] = float(moved + outer * 0.05 * (1.2 - depth[number - 1]))
            if watched < layers:
                for name in ("similarity", "kl"):
                    row[f"{name}/above"] = float(np.mean([row[f"{name}/to_{number}"] for number in range(watched + 1, layers + 1)]))
            row |= {
                "drift/embedding": 0.01 * done,
                "perplexity": float(1.4 + 1.2 * inner * (layer is not None) - 0.6 * outer),
                "response_length": 95 - 30 * done + rng.normal(),
            }
            for segment, factor in (("", 1.0), ("/thinking", 0.9), ("/answer", 1.1)):
                row[f"policy_entropy{segment}"] = factor * (0.5 + 0.4 * inner * (layer is not None) - 0.6 * outer * 0.6)
                row[f"settling_depth{segment}"] = factor * layers * (0.8 - 0.2 * done)
            if repeats > 1:
                row |= {
                    "stability/answers": float(np.clip(0.4 + 0.5 * done, 0, 1)),
                    "stability/entropy_path": None if step == every else 0.3,
                }
            for name, value in [item for item in row.items() if item[0] != "step" and not item[0].startswith("drift/")]:
                row |= {name + LOW: None if value is None else value - 0.1, name + HIGH: None if value is None else value + 0.2}
            row["log_perplexity"] = float(np.log(row["perplexity"]))  # type: ignore[arg-type]
            first = rows[0] if rows else row
            for name, value in [item for item in row.items() if not item[0].startswith(("step", "drift/"))]:
                if not name.endswith((LOW, HIGH)) and value is not None and first.get(name) is not None:
                    gone = value - first[name]  # type: ignore[operator]
                    row |= {name + CHANGE: gone, name + CHANGE + LOW: gone - 0.05, name + CHANGE + HIGH: gone + 0.05}
            rows.append(row)
            run = RunManifest(
                model=ModelInfo("tiny-qwen3", "0", "float32", n_layers=layers),
                config=AnalysisConfig("none", kl_from_layer=watched),
                samples=SampleSet(16, "0"),
            )
            RunFolder.begin(folder / "monitor" / f"step-{step:06d}", run)
        (folder / "monitor" / "summary.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder
