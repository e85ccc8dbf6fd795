"""A run that is resumed takes the steps of a run that never stopped, wherever its checkpoint lies."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from layerlens.errors import TrainingError
from layerlens.results.training_log import open_training
from layerlens.train.resume import (
    Shape,
    fill_adam_states,
    finish_from,
    last_whole_checkpoint,
    load_position,
    position_file,
    require_resumable_fsdp,
    save_position,
    steps_taken,
)
from tests.support.processes import FSDP2, launch
from tests.support.resume_worker import resume
from tests.support.training import make_trainer, trained_layers

pytestmark = pytest.mark.filterwarnings("default")  # TRL's and accelerate's own

RUNS: dict[str, tuple[dict[str, Any], tuple[int, ...], list[int]]] = {
    # settings; checkpoints to resume from; the layer of each micro-batch
    "inside the phase, at its end, after it": ({"internal_rollouts": 3, "max_steps": 6}, (2, 3, 4), [2] * 3 + [0] * 3),
    "inside a rollout": ({"internal_rollouts": 2, "max_steps": 6, "num_iterations": 2}, (1, 3, 5), [2] * 4 + [0] * 2),
    "in later epochs, of four rollouts": (
        {"internal_rollouts": 5, "max_steps": 10, "per_device_train_batch_size": 16}, (4, 6, 9), [2] * 5 + [0] * 5,
    ),
    "after an epoch that ends inside an accumulation window: five micro-batches in three optimizer steps": (
        {
            "internal_rollouts": 7, "max_steps": 6, "per_device_train_batch_size": 12,
            "gradient_accumulation_steps": 2, "steps_per_generation": 1,
        },
        (3, 4), [2] * 7 + [0] * 3,
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", RUNS)
def test_a_resumed_run_ends_on_the_weights_of_one_that_never_stopped(case: str, tmp_path: Path) -> None:
    settings, stops, layers = RUNS[case]
    settings = {"internal_layer": 2, **settings}
    unstopped = make_trainer(tmp_path / "unstopped", **settings, save_strategy="steps", save_steps=1)
    assert trained_layers(unstopped) == layers
    for stop in stops:
        resumed = make_trainer(tmp_path / f"from-{stop}", **settings)
        rest = trained_layers(resumed, tmp_path / "unstopped" / f"checkpoint-{stop}")
        assert 0 < len(rest) < len(layers)
        assert rest == layers[-len(rest) :]
        for (name, a), b in zip(unstopped.model.named_parameters(), resumed.model.parameters(), strict=True):
            assert torch.equal(a, b), (stop, name)


def test_the_plan_counts_the_short_windows_at_the_ends_of_epochs(tmp_path: Path) -> None:
    settings, _, layers = RUNS["after an epoch that ends inside an accumulation window: five micro-batches in three optimizer steps"]
    trainer = make_trainer(tmp_path, internal_layer=2, **settings)
    assert ("internal policy of layer 2", "7 rollouts (4 optimizer steps), norm none") in trainer.plan()
    trainer.train()
    trainer.save_state()
    log = open_training(tmp_path)
    assert log.internal == [(1, 4, 2)]
    windows = [layers[start:end] for start, end in ((0, 2), (2, 4), (4, 5), (5, 7), (7, 9), (9, 10))]
    assert log.log["bupo/internal_layer"].tolist() == [sum(window) / len(window) for window in windows]


def test_a_checkpoint_without_its_rollout_goes_on_with_another_of_the_same_number(tmp_path: Path) -> None:
    settings = {"internal_layer": 2, "internal_rollouts": 2, "max_steps": 6, "num_iterations": 2}
    make_trainer(tmp_path, **settings | {"max_steps": 3}, save_strategy="steps", save_steps=3).train()
    kept = position_file(str(tmp_path / "checkpoint-3"), 0)
    position = torch.load(kept, weights_only=True)
    assert (position["micro_batches"], len(position["rollout"])) == (3, 1)
    torch.save({**position, "shape": [2, 1, 2]}, kept)
    assert trained_layers(make_trainer(tmp_path / "other", **settings), tmp_path / "checkpoint-3") == [2, 0, 0]
    kept.unlink()  # a checkpoint of before 0.2
    assert trained_layers(make_trainer(tmp_path / "old", **settings), tmp_path / "checkpoint-3") == [2, 0, 0]


def test_a_process_takes_the_batches_of_its_own_file_alone(tmp_path: Path) -> None:
    shape, rollout = Shape(2, 2, 1), [{"advantages": torch.ones(1)}]
    for writer in (0, 1):
        folder = tmp_path / str(writer)
        folder.mkdir()
        save_position(str(folder), writer, shape, 3, rollout)
        assert load_position(str(folder), writer, shape) == (3, rollout)
    assert load_position(str(tmp_path / "0"), 1, shape) == (3, None), "process 0's are of other problems"
    assert load_position(str(tmp_path / "1"), 0, shape) is None


SMALL = {"per_device_train_batch_size": 2, "steps_per_generation": 4, "gradient_accumulation_steps": 2}
LARGE = {"per_device_train_batch_size": 4, "steps_per_generation": 2, "gradient_accumulation_steps": 1}


@pytest.mark.parametrize(("before", "after"), [(SMALL, LARGE), (LARGE, SMALL)])
@pytest.mark.parametrize("stop", [1, 2, 4, 5])
def test_smaller_or_larger_micro_batches_do_not_change_which_rollouts_are_internal(
    before: dict[str, Any], after: dict[str, Any], stop: int, tmp_path: Path
) -> None:
    settings = {"internal_layer": 2, "internal_rollouts": 2, "max_steps": 8}  # two optimizer steps on each rollout of 8 answers
    make_trainer(tmp_path, **settings | before | {"max_steps": stop}, save_strategy="steps", save_steps=stop).train()
    rest = trained_layers(make_trainer(tmp_path / "resumed", **settings | after), tmp_path / f"checkpoint-{stop}")
    by_step = ([2] * 4 + [0] * 4)[stop:]
    assert rest == [layer for layer in by_step for _ in range(after["gradient_accumulation_steps"])]


def test_a_resumed_run_goes_on_at_the_learning_rate_that_it_is_given(tmp_path: Path) -> None:
    settings = {"max_steps": 4, "lr_scheduler_type": "linear", "layer_lr_factors": "1:0.5"}
    whole = make_trainer(tmp_path / "whole", **settings, save_strategy="steps", save_steps=2)
    whole.train()
    resumed = make_trainer(tmp_path / "resumed", **settings, learning_rate=4e-3)  # 1e-2 before
    resumed.train(resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-2"))
    before, after = (
        [entry["learning_rate"] for entry in trainer.state.log_history if "learning_rate" in entry] for trainer in (whole, resumed)
    )
    assert after[:2] == before[:2]
    assert after[2:] == pytest.approx([0.4 * rate for rate in before[2:]])
    assert resumed.optimizer.param_groups[1]["lr"] == pytest.approx(0.5 * resumed.optimizer.param_groups[0]["lr"])


def test_other_optimizer_steps_in_a_rollout_are_refused_where_phases_count_rollouts(tmp_path: Path) -> None:
    settings = {"internal_layer": 2, "internal_rollouts": 2, "max_steps": 4, "save_strategy": "steps", "save_steps": 1}
    make_trainer(tmp_path, **settings | {"max_steps": 1}).train()
    with pytest.raises(
        TrainingError, match=r"another schedule: phases was|another schedule: optimizer_steps_per_rollout was 1\.0 and is 2\.0"
    ):
        make_trainer(tmp_path, **settings, num_iterations=2).train(resume_from_checkpoint=True)


def test_a_damaged_rollout_is_told_in_one_line(tmp_path: Path) -> None:
    save_position(str(tmp_path), 0, Shape(1, 4, 1), 5, None)
    assert load_position(str(tmp_path), 0, Shape(1, 4, 1)) == (5, None)
    file = position_file(str(tmp_path), 0)
    for odd in (file.read_bytes()[:-40], b"", b"text"):
        file.write_bytes(odd)
        with pytest.raises(TrainingError, match=r"rollout_0\.pt is damaged \(.*remove .* to go on from the checkpoint before it") as told:
            load_position(str(tmp_path), 0, Shape(1, 4, 1))
        assert "\n" not in str(told.value)
    torch.save({"shape": [1, 4, 1]}, file)
    with pytest.raises(TrainingError, match=r"rollout_0\.pt is damaged \('micro_batches'\)"):
        load_position(str(tmp_path), 0, Shape(1, 4, 1))


def test_a_checkpoint_that_a_kill_cut_short_is_passed_over(tmp_path: Path) -> None:
    assert last_whole_checkpoint(tmp_path) is None
    for step, state in ((2, '{"global_step": 2}'), (4, '{"global_step": 4}'), (6, '{"global_st'), (8, None)):
        folder = tmp_path / f"checkpoint-{step}"
        folder.mkdir()
        (folder / "model.safetensors").write_bytes(bytes(step))
        (folder / "optimizer.pt").touch()
        if state is not None:
            (folder / "trainer_state.json").write_text(state)
    last = last_whole_checkpoint(tmp_path)
    assert last == tmp_path / "checkpoint-4"
    assert finish_from(last, tmp_path), "killed before the trained model was saved"
    assert (tmp_path / "model.safetensors").read_bytes() == bytes(4)
    assert steps_taken(tmp_path) == 4
    assert not (tmp_path / "optimizer.pt").exists()
    assert not finish_from(last, tmp_path), "nothing is left to do"
    assert not finish_from(tmp_path / "checkpoint-2", tmp_path), "an earlier one"


def test_a_second_run_of_one_trainer_has_the_phases_of_its_plan(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path, internal_layer=2, internal_rollouts=1, max_steps=3, num_iterations=2)
    assert trained_layers(trainer) == [2, 2, 0]
    assert trained_layers(trainer) == [2, 2, 0]


@pytest.mark.parametrize("amsgrad", [False, True])
def test_filled_states_are_those_that_adam_makes_itself(amsgrad: bool) -> None:
    def weights() -> list[nn.Parameter]:
        return [nn.Parameter(torch.linspace(0, 1, size)) for size in (3, 4)]

    filled, plain = weights(), weights()
    optimizers = [torch.optim.AdamW(each, weight_decay=0.1, amsgrad=amsgrad) for each in (filled, plain)]
    for step in range(3):
        for each, optimizer in zip((filled, plain), optimizers, strict=True):
            for weight in each if step else each[:1]:
                weight.grad = torch.full_like(weight, step + 1.0)
            optimizer.step()
            optimizer.zero_grad()
        if step == 0:
            fill_adam_states(optimizers[0])
            assert len(optimizers[0].state) == 2
            assert len(optimizers[1].state) == 1
    for a, b in zip(filled, plain, strict=True):
        assert torch.equal(a, b)


def test_a_sharded_run_resumes_inside_at_the_end_of_and_after_the_internal_phase(tmp_path: Path) -> None:
    out = tmp_path / "resumed.json"
    launch(resume, [out], 2, tmp_path / "log", FSDP2)
    found = json.loads(out.read_text())
    assert found["differing"] == {f"{kind} {step}": [] for kind in ("FULL_STATE_DICT", "SHARDED_STATE_DICT") for step in (3, 4, 5)}
    assert found["moved"] == found["weights"] > 40
    assert found["rollouts"] == [2, 2], "both processes sample the unfinished rollout anew, and the one after it"


def test_what_fsdp_could_not_resume_is_refused(tmp_path: Path) -> None:
    args = make_trainer(tmp_path, internal_layer=2, internal_rollouts=1, save_strategy="steps", optim="adafactor").args
    plugin = type("Plugin", (), {"fsdp_version": 2})
    with pytest.raises(TrainingError, match="adamw_torch or adamw_torch_fused alone, got optim adafactor"):
        require_resumable_fsdp(args, plugin)
    args.save_strategy = "no"
    require_resumable_fsdp(args, plugin)
    plugin.fsdp_version = 1
    with pytest.raises(TrainingError, match="work with FSDP2, got FSDP1"):
        require_resumable_fsdp(args, plugin)
