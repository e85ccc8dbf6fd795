"""Fields and options under the names they once had."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest

from layerlens.errors import TrainingError
from layerlens.train import BuPOConfig
from layerlens.train.config_file import read_config

pytestmark = pytest.mark.filterwarnings("default")  # TRL's and accelerate's own


def build_config(folder: Path, **settings: Any) -> BuPOConfig:
    return BuPOConfig(output_dir=str(folder), use_cpu=True, bf16=False, report_to="none", **settings)


def test_fields_answer_to_their_old_names(tmp_path: Path) -> None:
    args = build_config(tmp_path, internal_layer=2, internal_steps=3, monitor_steps=5)
    assert (args.internal_rollouts, args.monitor_every) == (args.internal_steps, args.monitor_steps) == (3, 5)
    args.internal_steps = 4
    assert args.internal_rollouts == 4
    assert not {"internal_steps", "monitor_steps"} & {field.name for field in fields(BuPOConfig)}
    assert not {"internal_steps", "monitor_steps"} & args.to_dict().keys()


def test_an_old_and_a_new_name_may_not_differ(tmp_path: Path) -> None:
    told = "internal_steps=3 and internal_rollouts=4 are one setting under its old and its new name: give internal_rollouts alone"
    with pytest.raises(TrainingError, match=told):
        build_config(tmp_path, internal_layer=2, internal_steps=3, internal_rollouts=4)
    assert build_config(tmp_path, internal_layer=2, internal_steps=3, internal_rollouts=3).internal_rollouts == 3


OLD_FILE = str(Path(__file__).parents[1] / "formats" / "training-1.yaml")
"""The shipped tiny-qwen3-cpu as it was when internal_rollouts was internal_steps and monitor_every was monitor_steps."""


def test_a_file_with_old_names_is_the_one_with_new_names(tmp_path: Path) -> None:
    here = ["--output_dir", str(tmp_path)]
    (old_script, old), (script, new) = read_config(OLD_FILE, here), read_config("tiny-qwen3-cpu", here)
    assert old_script == script
    assert old.to_dict() == new.to_dict()
    assert (new.internal_rollouts, new.monitor_every) == (5, 10)


@pytest.mark.parametrize("file", [OLD_FILE, "tiny-qwen3-cpu"], ids=["old", "new"])
@pytest.mark.parametrize(
    "words",
    [
        "--internal_rollouts -1 --monitor-every=7",
        "--internal_steps -1 --monitor-steps=7",
        "--internal_rollouts -1 --internal_steps -1 --monitor_steps 7",
    ],
)
def test_either_name_on_the_command_line_wins_over_either_in_the_file(file: str, words: str, tmp_path: Path) -> None:
    _, args = read_config(file, ["--output_dir", str(tmp_path), *words.split(), "--problems_difficulties", "1", "4"])
    assert (args.internal_rollouts, args.monitor_every) == (-1, 7)


def test_an_old_and_a_new_name_that_differ_are_refused(tmp_path: Path) -> None:
    told = "internal_steps=3 and internal_rollouts=4 are one setting under its old and its new name: give internal_rollouts alone"
    with pytest.raises(TrainingError, match=f"^{told}$"):
        read_config("tiny-qwen3-cpu", ["--internal-steps", "3", "--internal_rollouts", "4"])
    (tmp_path / "both.yaml").write_text("model: tiny-qwen3\ninternal_layer: 3\ninternal_steps: 3\ninternal_rollouts: 4\n")
    with pytest.raises(TrainingError, match=f"both.yaml: {told}"):
        read_config(str(tmp_path / "both.yaml"), [])
    with pytest.raises(TrainingError, match="argument --internal_steps/--internal-steps: invalid int value: 'many'; see layerlens train"):
        read_config("tiny-qwen3-cpu", ["--internal_steps", "many"])
