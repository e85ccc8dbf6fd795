"""A real model trained by commands alone: BuPO, one layer alone, and distillation, each for three rollouts of adapters on a CPU."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from layerlens.results import open_training
from tests.support.command_line import command

pytestmark = [pytest.mark.real, pytest.mark.filterwarnings("default")]
FOLDER = os.environ.get("LAYERLENS_REAL_MODELS")

CONFIG = """
model: {model}
problems: {here}/problems.jsonl
reward: shorter:shorter
dtype: float32
threads: 1
lora_rank: 4
max_steps: 3
per_device_train_batch_size: 8
num_generations: 4
max_completion_length: 16
learning_rate: 1.0e-3
lr_scheduler_type: constant
monitor_every: 1
monitor_problems: 2
monitor_repeats: 1
logging_steps: 1
bf16: false
use_cpu: true
gradient_checkpointing: false
report_to: none
"""
REWARD = "def shorter(completions, **columns):\n    return [-float(len(answer[-1]['content'])) for answer in completions]\n"
QUESTIONS = ["What is 17 + 25?", "Solve 2x + 6 = 20 for x.", "Name a prime number above 30.", "What is half of 90?"]


@pytest.mark.skipif(not FOLDER, reason="LAYERLENS_REAL_MODELS names no folder of real models")
@pytest.mark.parametrize(
    ("options", "phases", "moved"),
    [
        ({"internal_layer": 20, "internal_rollouts": 2, "internal_norm": "final"}, [20, 20, 0], [range(1, 21), range(1, 21), range(1, 31)]),
        ({"train_layers": 21}, [0, 0, 0], [range(21, 22)] * 3),
        ({"internal_loss": "distill", "distill_layers": "20"}, [0, 0, 0], [range(1, 31)] * 3),
    ],
    ids=["bupo", "alone", "distilled"],
)
def test_three_rollouts_of_smollm2_move_the_layers_that_they_should(
    options: dict[str, object], phases: list[int], moved: list[range], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "problems.jsonl").write_text("".join(json.dumps({"prompt": text, "ground_truth": "0"}) + "\n" for text in QUESTIONS))
    (tmp_path / "shorter.py").write_text(REWARD)
    config = CONFIG.format(model=Path(str(FOLDER)) / "smollm2-135m-instruct", here=tmp_path)
    (tmp_path / "real.yaml").write_text(config + "".join(f"{name}: {value}\n" for name, value in options.items()))
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    assert command(monkeypatch, "train", "--config", "real.yaml", "--output_dir", "trained") == 0
    training = open_training("trained")
    assert training.log["bupo/internal_layer"].tolist() == phases
    assert ("distill/js_layer_20" in training.log) == ("internal_loss" in options)
    assert training.monitor["step"].tolist() == [0, 1, 2, 3]
    for row, layers in enumerate(moved, 1):
        drift = {layer: training.monitor[f"drift/layer_{layer}"].iloc[row] for layer in range(1, 31)}
        assert {layer for layer, far in drift.items() if far > 0} == set(layers), row
    assert command(monkeypatch, "plot", "trained", "--out", "figures") == 0
    assert Path("figures/trained-drift.png").stat().st_size > 5000
    assert command(monkeypatch, "report", "trained", "--out", "page.html") == 0
    page = Path("page.html").read_text(encoding="utf-8")
    assert all(words in page for words in ("Drift of the weights", "Settling depth, norm final", "JS from the layer"))
