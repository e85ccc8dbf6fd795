"""The layer that a file of `layerlens select --json` or "auto" says, and what is warned of or refused about it."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import pytest
from trl import GRPOTrainer

import layerlens as ll
from layerlens.errors import ModelLoadError, TrainingError
from layerlens.models import DecoderParts, find_decoder_parts
from layerlens.train import BuPOConfig
from tests.support.synthetic_runs import make_run
from tests.support.tiny_models import tiny_model
from tests.support.training import make_trainer

pytestmark = pytest.mark.filterwarnings("default")  # TRL's and accelerate's own

FINGERPRINT = find_decoder_parts(tiny_model("qwen3")).fingerprint()
CHOICE = ll.select_layer(make_run([0.6, 0.5, -0.4, -0.6], start=6.0), resamples=100).to_dict() | {
    "run": "runs/before", "fingerprint": FINGERPRINT,
}  # fmt: skip
"""The choice of layer 2, on a run of the tiny model, which has 4 layers."""


def write(folder: Path, **changes: Any) -> str:
    """Writes a file as `layerlens select --json` does, and returns its path."""
    (folder / "choice.json").write_text(json.dumps(CHOICE | changes))
    return str(folder / "choice.json")


def test_a_choice_file_sets_the_layer_and_is_kept_in_the_schedule(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path / "out", internal_layer=write(tmp_path), internal_rollouts=1, max_steps=1)
    trainer.train()
    assert trainer.schedule.phases == ((2, 1),)
    assert ("chosen on", "runs/before (synthetic), rule boundary") in trainer.plan()
    assert ("skill of its policy", "+4.6 nats a token over guessing (final policy: +6.6 nats)") in trainer.plan()
    kept = json.loads((tmp_path / "out" / "schedule.json").read_text())["choice"]
    assert kept == json.loads(json.dumps(CHOICE))
    assert (kept["run"], kept["rule"], kept["fingerprint"]) == ("runs/before", "boundary", FINGERPRINT)
    assert 0.5 < kept["frequency"] <= 1.0


@pytest.mark.parametrize("loaded", [True, False], ids=["in memory", "by name"])
@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({}, []),
        (
            {"fingerprint": "0123456789abcdef"},
            ["on synthetic with weights 0123456789abcdef (runs/before), and the model to train has other weights"],
        ),
        ({"norm": "final"}, ["was chosen with norm final and is trained with internal_norm none"]),
        ({"fingerprint": None}, []),
        (
            {"usable": [3, 4], "skill": -2.0},
            ["policy of layer 2 under norm none is no better than guessing (-2.0 nats a token over guessing); usable are layers 3-4"],
        ),
        ({"usable": [], "skill": None}, ["is no better than guessing; no layer is usable: train with internal_norm final"]),
        ({"usable": None}, []),
    ],
)
def test_other_weights_another_norm_and_a_layer_that_is_not_usable_are_warned_of(
    changes: dict[str, Any], told: list[str], loaded: bool, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    model = tiny_model("qwen3")
    model.save_pretrained(tmp_path / "model")
    with caplog.at_level(logging.WARNING, "layerlens.train"):
        make_trainer(tmp_path, model if loaded else str(tmp_path / "model"), internal_layer=write(tmp_path, **changes), internal_rollouts=1)
    messages = [record.getMessage() for record in caplog.records if record.name == "layerlens.train"]
    assert len(messages) == len(told)
    for message, words in zip(messages, told, strict=True):
        assert words in message
        assert "\n" not in message


def test_weights_are_compared_before_adapters_are_put_into_the_model(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    from peft import LoraConfig, get_peft_model

    lora = LoraConfig(r=2, target_modules=["q_proj"])
    make_trainer(tmp_path, internal_layer=write(tmp_path), internal_rollouts=1, peft_config=lora)
    make_trainer(tmp_path, get_peft_model(tiny_model("qwen3"), lora), internal_layer=write(tmp_path), internal_rollouts=1)
    assert not [record for record in caplog.records if record.name == "layerlens.train"]


def test_fingerprints_are_computed_on_the_main_process_and_only_to_compare(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def computed(self: DecoderParts) -> str:
        raise AssertionError

    monkeypatch.setattr(DecoderParts, "fingerprint", computed)
    with pytest.raises(AssertionError):
        make_trainer(tmp_path, internal_layer=write(tmp_path), internal_rollouts=1)
    make_trainer(tmp_path, internal_layer=2, internal_rollouts=1)
    make_trainer(tmp_path, internal_layer=write(tmp_path, fingerprint=None), internal_rollouts=1)
    monkeypatch.setattr(BuPOConfig, "process_index", property(lambda self: 1))
    make_trainer(tmp_path, internal_layer=write(tmp_path), internal_rollouts=1)


NO_LAYER = ll.select_layer(make_run([-0.5] * 4, start=6.0), "boundary", resamples=100).to_dict()
OTHER = CHOICE | {"model": "other"}


@pytest.mark.parametrize(
    ("text", "told"),
    [
        (json.dumps(NO_LAYER), "choice.json names no layer to train (no layer: mean FFN ΔS does not rise above zero"),
        (
            "",
            "choice.json is damaged or of an earlier version (a choice of layer needs the key 'layer'): "
            "write one with `layerlens select RUN --json`",
        ),
        (json.dumps(CHOICE)[:-20], "choice.json cannot be read as a choice of layer"),
        ("layer 6\n", "choice.json cannot be read as a choice of layer"),
        ("6", "choice.json is damaged or of an earlier version (a choice of layer needs the key"),
        (json.dumps(CHOICE | {"layer": 5}), "choice.json is damaged or of an earlier version (a choice of layer has a rule of"),
        (json.dumps([CHOICE, OTHER]), "choice.json holds the choices of 2 runs, and training needs that of one"),
        (json.dumps(CHOICE) + "\n" + json.dumps(OTHER), "choice.json holds the choices of 2 runs, and training needs that of one"),
        (json.dumps({"synthetic": CHOICE, "other": OTHER}), "choice.json holds the choices of 2 runs, and training needs that of one"),
        (None, "internal_layer is a layer from 1, auto, none, or a file of `layerlens select --json`; "),
    ],
    ids=["no layer", "empty", "cut off", "text", "number", "too deep", "list", "appended", "demo", "missing"],
)
def test_a_file_that_says_no_layer_is_refused_when_the_configuration_is_built(text: str | None, told: str, tmp_path: Path) -> None:
    if text is not None:
        (tmp_path / "choice.json").write_text(text)
    with pytest.raises(TrainingError) as refusal:
        BuPOConfig(output_dir=str(tmp_path), use_cpu=True, bf16=False, internal_layer=str(tmp_path / "choice.json"), internal_rollouts=1)
    assert told in str(refusal.value)
    assert "\n" not in str(refusal.value)


def test_a_choice_of_one_run_may_stand_in_a_list_or_under_its_model(tmp_path: Path) -> None:
    for value in ([CHOICE], {"synthetic": CHOICE}):
        (tmp_path / "choice.json").write_text(json.dumps(value))
        assert BuPOConfig(
            output_dir=str(tmp_path), use_cpu=True, bf16=False, internal_layer=str(tmp_path / "choice.json"), internal_rollouts=1
        ).schedule().phases == ((2, 1),)


def test_a_choice_on_a_model_of_another_depth_is_refused_before_anything_is_loaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(GRPOTrainer, "__init__", None)
    tiny_model("qwen3").config.save_pretrained(tmp_path / "model")  # a configuration without weights
    told = "internal_layer was chosen on synthetic, which has 36 layers, and the model to train has 4: choose on a run of this model"
    for model in (None, str(tmp_path / "model")):
        with pytest.raises(TrainingError, match=told):
            make_trainer(tmp_path, model, internal_layer=write(tmp_path, n_layers=36), internal_rollouts=1)
    with pytest.raises(ModelLoadError, match="nowhere: its configuration could not be read"):
        make_trainer(tmp_path, str(tmp_path / "nowhere"), internal_layer=2, internal_rollouts=1)


# ---- "auto"


def test_auto_chooses_on_training_prompts_or_says_why_not(tmp_path: Path) -> None:
    trainer = make_trainer(
        tmp_path, internal_layer="auto", internal_rollouts=1, internal_rule="agreement", internal_norm="final", internal_samples=4
    )
    assert trainer.choice.rule == "agreement"
    assert trainer.schedule.phases == ((trainer.choice.layer, 1),)
    with pytest.raises(TrainingError, match=r"found no layer to train: no layer: .*\. Name one, or choose another internal_rule"):
        make_trainer(tmp_path, internal_layer="auto", internal_rollouts=1, internal_samples=4)


def test_auto_may_not_choose_a_frozen_layer(tmp_path: Path) -> None:
    auto = {"internal_layer": "auto", "internal_rule": "entropy_drop", "internal_samples": 4, "internal_rollouts": 1}
    chosen = make_trainer(tmp_path, **auto).choice.layer
    with pytest.raises(TrainingError, match=f"freeze_layers={chosen} leaves nothing but the unembedding .* layer {chosen}'s policy"):
        make_trainer(tmp_path, freeze_layers=chosen, **auto)


def test_the_choice_of_auto_is_on_disk(tmp_path: Path) -> None:
    auto = {"internal_layer": "auto", "internal_rule": "agreement", "internal_norm": "final", "internal_samples": 4}
    trainer = make_trainer(tmp_path, max_steps=1, internal_rollouts=-1, **auto)
    trainer.train()
    kept = json.loads((tmp_path / "schedule.json").read_text())
    assert kept["choice"] == json.loads(json.dumps(trainer.choice.to_dict()))
    assert kept["choice"]["fingerprint"] == FINGERPRINT
    assert kept["phases"] == [{"layer": trainer.choice.layer, "rollouts": None, "first_optimizer_step": 1, "last_optimizer_step": None}]


def test_a_run_that_goes_on_keeps_the_layer_that_auto_chose(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    auto = {"internal_layer": "auto", "internal_rule": "entropy_drop", "internal_samples": 4, "internal_rollouts": 2}
    auto |= {"max_steps": 2, "resume_from_checkpoint": str(tmp_path / "checkpoint-1")}
    first = make_trainer(tmp_path, **auto, save_strategy="steps", save_steps=1)  # there is nothing yet to go on from
    first.train()
    monkeypatch.setattr("layerlens.train.layer_choice.analyze", None)
    second = make_trainer(tmp_path, **auto)
    assert second.schedule == first.schedule
    assert second.choice.to_dict() == first.choice.to_dict()
    second.train(resume_from_checkpoint=auto["resume_from_checkpoint"])
    schedule = tmp_path / "schedule.json"
    schedule.write_text(schedule.read_text().replace('"rule": "entropy_drop"', '"rule": "none"'))
    with pytest.raises(TrainingError, match=r"schedule\.json is damaged \(a choice of layer has a rule .*: name the layer of its phases"):
        make_trainer(tmp_path, **auto)


def test_auto_does_not_analyse_if_there_is_no_internal_phase(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("layerlens.train.layer_choice.analyze", None)
    trainer = make_trainer(tmp_path, internal_layer="auto", internal_rollouts=0)
    assert trainer.choice is None
    assert trainer.schedule.phases == ()
