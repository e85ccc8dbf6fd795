"""What a training leaves says how its model was made."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from layerlens.storage.training_folder import TrainedAs, prompted_with, trained_as
from tests.support.training_folders import write_training

OLD = Path(__file__).parents[1] / "formats" / "training-1"
MASK = {"signal": "entropy", "layer": 8, "quantile": 0.2, "norm": "final"}


def test_a_training_says_layers_objective_steps_and_seed(tmp_path: Path) -> None:
    bupo = write_training(tmp_path / "bupo", monitor=False)
    assert trained_as(bupo) == TrainedAs("all", "policy of layer 4 for 10 rollouts (norm none), final policy", 40, None)
    alone = write_training(tmp_path / "alone", layer=None, monitor=False)
    file = alone / "schedule.json"
    schedule = json.loads(file.read_text())
    file.write_text(json.dumps(schedule | {"train_layers": "3", "seed": 2}))
    assert trained_as(alone) == TrainedAs("3", "final policy", 40, 2)
    (alone / "settings.json").write_text(json.dumps({"settings": {"generation_batch_size": 128, "learning_rate": 7e-4}}))
    assert trained_as(alone) == TrainedAs("3", "final policy", 40, 2, 128, 7e-4)
    (alone / "settings.json").write_text(json.dumps({"settings": {"generation_batch_size": None, "learning_rate": "x"}}))
    assert trained_as(alone) == TrainedAs("3", "final policy", 40, 2)
    file.write_text(json.dumps(schedule | {"token_mask": MASK}))
    assert trained_as(alone) == TrainedAs("all", "final policy, tokens: the 20% of largest entropy at layer 8", 40, None)
    whole = {"layer": 11, "rollouts": None, "first_optimizer_step": 1, "last_optimizer_step": None}
    file.write_text(json.dumps(schedule | {"phases": [whole], "lens": "tuned:lens", "norm": "final"}))
    assert trained_as(alone) == TrainedAs("all", "policy of layer 11 (norm final, tuned:lens)", 40, None)
    assert trained_as(OLD) == TrainedAs(
        "all", "policy of layer 1 for 1 rollout (norm none), policy of layer 3 for 2 rollouts (norm none), final policy", 8, None
    )


def test_a_checkpoint_is_of_its_training_after_fewer_steps(tmp_path: Path) -> None:
    out = write_training(tmp_path / "out", steps=20, checkpoint=True, monitor=False)
    assert trained_as(out / "checkpoint-20") == TrainedAs("all", "policy of layer 4 for 10 rollouts (norm none), final policy", 20, None)
    assert trained_as(out) == TrainedAs("all", "policy of layer 4 for 10 rollouts (norm none), final policy", None, None)
    (out / "merged").mkdir()
    assert trained_as(out / "merged") is None


@pytest.mark.parametrize("text", ["{", "[]", '{"phases": 1}', '{"phases": [{"layer": 1}]}', '{"phases": [], "train_layers": "x"}'])
def test_a_model_can_be_read_without_what_is_damaged(tmp_path: Path, text: str) -> None:
    (tmp_path / "schedule.json").write_text(text)
    assert trained_as(tmp_path) is None
    assert trained_as(tmp_path / "no-folder") is None


def test_a_training_says_how_its_prompts_were_put(tmp_path: Path) -> None:
    assert prompted_with(tmp_path) == (None, None)
    file, checkpoint = tmp_path / "settings.json", tmp_path / "checkpoint-20"
    checkpoint.mkdir()
    file.write_text(json.dumps({"settings": {"system": "Be brief.", "chat_template_kwargs": {"enable_thinking": False}}}))
    assert prompted_with(tmp_path) == prompted_with(checkpoint) == ("Be brief.", False)
    file.write_text(json.dumps({"settings": {"system": None, "chat_template_kwargs": None}}))
    assert prompted_with(tmp_path) == (None, None)
    for damaged in ("{", "[]", '{"settings": {}}', '{"settings": 1}', '{"settings": {"system": 1, "chat_template_kwargs": [1]}}'):
        file.write_text(damaged)
        assert prompted_with(tmp_path) == (None, None)
