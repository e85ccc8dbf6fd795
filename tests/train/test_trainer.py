"""The identities that BuPO must obey, on small random models."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from torch import nn

from layerlens.decode.autograd import token_log_probs
from layerlens.errors import SelectionError, TrainingError
from layerlens.models import causal_lm, count_blocks, truncated_at
from layerlens.results.training_log import open_training
from layerlens.train import BuPOConfig, BuPOTrainer, head
from layerlens.train.trainer import LAYER
from tests.support.tiny_models import random_ids, tiny_model, tiny_tokenizer
from tests.support.training import fixed_batch, make_trainer, plain_logps, reward

pytestmark = pytest.mark.filterwarnings("default")  # TRL's and accelerate's own


def logps_of(trainer: Any, batch: dict[str, torch.Tensor], layer: int | None, model: nn.Module | None = None) -> torch.Tensor:
    trainer._active_layer = layer
    ids = torch.cat([batch["prompt_ids"], batch["completion_ids"]], 1)
    mask = torch.cat([batch["prompt_mask"], batch["completion_mask"]], 1)
    try:
        return trainer._get_per_token_logps_and_entropies(model or trainer.model, ids, mask, batch["completion_ids"].size(1))[0]
    finally:
        trainer._active_layer = None


@pytest.mark.parametrize("norm", ["none", "final"])
@pytest.mark.parametrize("tied", [True, False])
def test_internal_log_probs_are_those_of_the_whole_forward(architecture: str, tied: bool, norm: str, tmp_path: Path) -> None:
    model = tiny_model(architecture, tied=tied)
    trainer = make_trainer(tmp_path, model, internal_layer=2, internal_steps=1, internal_norm=norm)
    batch = fixed_batch()
    with torch.no_grad():
        for layer in range(1, 5):
            ours = logps_of(trainer, batch, layer) * batch["completion_mask"]
            plain = plain_logps(causal_lm(trainer.model), batch, layer, norm)
            torch.testing.assert_close(ours, plain, atol=1e-6, rtol=2.4e-7)  # 1e-6, or what two last bits of a float32 are


@pytest.mark.parametrize("loss_type", ["grpo", "bnpo", "dr_grpo", "dapo"])
def test_the_last_layer_with_its_norm_is_grpo_bit_for_bit(loss_type: str, tmp_path: Path) -> None:
    gradients = []
    for layer in (None, 4):
        settings = {} if layer is None else {"internal_layer": layer, "internal_steps": -1, "internal_norm": "final"}
        trainer = make_trainer(tmp_path, tiny_model("qwen3"), loss_type=loss_type, **settings)
        batch = fixed_batch() | ({} if layer is None else {LAYER: torch.tensor(layer)})
        trainer.current_gradient_accumulation_steps = 1
        trainer.model.train()
        loss = trainer._compute_loss(trainer.model, batch)
        loss.backward()
        gradients.append((loss.detach(), {name: weight.grad for name, weight in trainer.model.named_parameters()}))
    assert torch.equal(gradients[0][0], gradients[1][0])
    for name, gradient in gradients[0][1].items():
        assert gradient is not None
        assert torch.equal(gradient, gradients[1][1][name]), name


def test_internal_log_probs_come_from_the_readout_and_those_of_grpo_from_trl(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trainer = make_trainer(tmp_path, internal_layer=2, internal_steps=1)
    rows: list[int] = []

    def counted(hidden: torch.Tensor, *args: Any) -> Any:
        rows.append(len(hidden))
        return token_log_probs(hidden, *args)

    monkeypatch.setattr(head, "token_log_probs", counted)
    logps_of(trainer, fixed_batch(), None)
    assert not rows
    logps_of(trainer, fixed_batch(), 2)
    assert rows == [4 * 10]  # every position of the batch that predicts one


@pytest.mark.parametrize("norm", ["none", "final"])
@pytest.mark.parametrize("loss_type", ["grpo", "bnpo", "dr_grpo", "dapo"])
def test_the_internal_loss_is_the_hand_written_one(loss_type: str, norm: str, tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path, internal_layer=2, internal_steps=-1, internal_norm=norm, loss_type=loss_type)
    batch = fixed_batch()
    old = plain_logps(trainer.model, batch, 2, norm).detach() + 0.3 * torch.randn(4, 6, generator=torch.Generator().manual_seed(1))
    trainer.current_gradient_accumulation_steps = 1
    trainer.model.train()
    loss = trainer._compute_loss(trainer.model, {**batch, LAYER: torch.tensor(2), "old_per_token_logps": old})
    loss.backward()
    ours = {name: None if w.grad is None else w.grad.clone() for name, w in trainer.model.named_parameters()}
    trainer.model.zero_grad()

    mask = batch["completion_mask"]
    ratio = (plain_logps(trainer.model, batch, 2, norm) - old).exp()
    advantage = batch["advantages"][:, None]
    per_token = -torch.min(ratio * advantage, ratio.clamp(0.8, 1.2) * advantage) * mask
    expected = {
        "grpo": (per_token.sum(1) / mask.sum(1)).mean(),
        "bnpo": per_token.sum() / mask.sum(),
        "dr_grpo": per_token.sum() / (4 * 6),
        "dapo": per_token.sum() / mask.sum(),
    }[loss_type]
    torch.testing.assert_close(loss.detach(), expected.detach(), atol=1e-6, rtol=1e-6)
    expected.backward()
    for name, weight in trainer.model.named_parameters():
        if ours[name] is None:
            assert weight.grad is None, name
        else:
            torch.testing.assert_close(ours[name], weight.grad, atol=1e-6, rtol=1e-5, msg=name)


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("more", [{}, {"gradient_checkpointing": True}, {"beta": 0.1}, {"num_iterations": 2}, {"steps_per_generation": 2}])
def test_blocks_above_the_layer_do_not_move(more: dict[str, Any], tied: bool, tmp_path: Path) -> None:
    model = tiny_model("llama", tied=tied)
    if "beta" in more:
        model.save_pretrained(tmp_path / "model")  # the reference is loaded by name
        model.config._name_or_path = str(tmp_path / "model")
    before = {name: weight.clone() for name, weight in model.named_parameters()}
    trainer = make_trainer(tmp_path, model, internal_layer=2, internal_steps=-1, max_steps=4, **more)
    trainer.train()
    moved = {name for name, weight in trainer.model.named_parameters() if not torch.equal(weight, before[name])}
    above = {name for name in before if name.startswith(("model.layers.2", "model.layers.3", "model.norm"))}
    assert not moved & above
    assert {name for name in before if name.startswith(("model.layers.0", "model.layers.1"))} <= moved
    assert "model.embed_tokens.weight" in moved
    assert tied or "lm_head.weight" in moved


@pytest.mark.parametrize("adapters", ["none", "new", "the model's own"])
def test_the_reference_is_the_internal_policy_of_the_model_before_training(adapters: str, tmp_path: Path) -> None:
    from peft import LoraConfig, get_peft_model

    model = tiny_model("llama")
    model.save_pretrained(tmp_path / "model")  # the reference is loaded by name
    model.config._name_or_path = str(tmp_path / "model")
    lora = LoraConfig(r=2, target_modules=["q_proj", "up_proj"], init_lora_weights=adapters == "new")
    start = tiny_model("llama")
    if adapters == "the model's own":
        model = get_peft_model(model, lora)
        start = causal_lm(copy.deepcopy(model))
    trainer = make_trainer(
        tmp_path, model, internal_layer=2, internal_steps=-1, beta=0.1, num_iterations=2, peft_config=lora if adapters == "new" else None
    )
    with torch.no_grad():
        for weight in trainer.model.parameters():
            if weight.requires_grad:
                weight.add_(0.1 * torch.randn(weight.shape, generator=torch.Generator().manual_seed(0)))
    trainer.model.train()
    batch = trainer._generate_and_score_completions([trainer.train_dataset[0]] * 4)
    mask = batch["completion_mask"]
    with torch.no_grad():
        now, before = plain_logps(causal_lm(trainer.model), batch, 2, "none"), plain_logps(start, batch, 2, "none")
    torch.testing.assert_close(batch["old_per_token_logps"] * mask, now, atol=2e-6, rtol=1e-6)
    torch.testing.assert_close(batch["ref_per_token_logps"] * mask, before, atol=2e-6, rtol=1e-6)
    assert (now - before).abs().max() > 0.01


def test_decay_above_lets_weights_decay(tmp_path: Path) -> None:
    model = tiny_model("llama")
    before = model.model.layers[3].mlp.up_proj.weight.clone()
    make_trainer(tmp_path, model, internal_layer=2, internal_steps=-1, max_steps=1, decay_above=True).train()
    torch.testing.assert_close(model.model.layers[3].mlp.up_proj.weight, before * (1 - 1e-2 * 0.1))


def test_lora_trains_in_both_phases(tmp_path: Path) -> None:
    from peft import LoraConfig

    trainer = make_trainer(
        tmp_path, internal_layer=2, internal_steps=1, beta=0.05, max_steps=2,
        peft_config=LoraConfig(r=2, target_modules=["q_proj", "up_proj"], init_lora_weights=False),
    )  # fmt: skip
    before = {name: weight.clone() for name, weight in trainer.model.named_parameters()}
    moved_at: list[set[str]] = []
    step = trainer.training_step

    def watch(*args: Any, **kwargs: Any) -> torch.Tensor:
        loss = step(*args, **kwargs)
        moved_at.append(
            {name for name, weight in trainer.model.named_parameters() if weight.grad is not None and weight.grad.abs().sum() > 0}
        )
        return loss

    trainer.training_step = watch
    trainer.train()
    assert all("lora" in name for names in moved_at for name in names)
    assert not any(".layers.2." in name or ".layers.3." in name for name in moved_at[0])
    assert any(".layers.3." in name for name in moved_at[-1])
    assert count_blocks(trainer.model) == 4
    assert any(not torch.equal(weight, before[name]) for name, weight in trainer.model.named_parameters())


def test_the_phase_switches_when_it_says(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path, internal_schedule="1:1,3:2", max_steps=10, num_iterations=2)
    seen: list[int] = []
    compute = trainer._compute_loss

    def watch(model: nn.Module, inputs: dict[str, Any]) -> torch.Tensor:
        seen.append(int(inputs.get(LAYER, 0)))
        return compute(model, inputs)

    trainer._compute_loss = watch
    trainer.train()
    assert seen == [1, 1, 3, 3, 3, 3, 0, 0, 0, 0]
    assert trainer.args.optimizer_steps(3) == 6
    assert ("internal policy of layer 3", "2 rollout steps (4 optimizer steps), norm none") in trainer.plan()


@pytest.mark.parametrize("stop", [2, 4])
def test_a_resumed_run_ends_on_the_same_parameters(stop: int, tmp_path: Path) -> None:
    settings = {"internal_layer": 2, "internal_steps": 3, "max_steps": 6, "save_strategy": "steps", "save_steps": stop}
    whole = make_trainer(tmp_path / "whole", **settings)
    assert "checkpoints" not in dict(whole.plan())
    whole.train()
    resumed = make_trainer(tmp_path / "resumed", **settings)
    resumed.train(resume_from_checkpoint=str(tmp_path / "whole" / f"checkpoint-{stop}"))
    for (name, a), b in zip(whole.model.named_parameters(), resumed.model.parameters(), strict=True):
        assert torch.equal(a, b), name


def test_the_schedule_is_on_disk_and_a_run_that_goes_on_keeps_it(tmp_path: Path) -> None:
    settings = {"internal_schedule": "1:1,3:2", "num_iterations": 2, "save_strategy": "steps", "save_steps": 3, "logging_steps": 3}
    make_trainer(tmp_path, max_steps=3, **settings).train()
    written = (tmp_path / "schedule.json").read_bytes()
    resumed = make_trainer(tmp_path, max_steps=9, **settings)
    assert ("checkpoints", "every 3 steps, some inside a rollout of 2, which a resumed run samples anew") in resumed.plan()
    resumed.train(resume_from_checkpoint=True)
    resumed.save_state()
    assert (tmp_path / "schedule.json").read_bytes() == written
    assert open_training(tmp_path).internal == [(1, 2, 1), (3, 6, 3)]
    assert open_training(tmp_path).log["step"].tolist() == [3, 6, 9]
    with pytest.raises(TrainingError, match="had another schedule"):
        make_trainer(tmp_path, max_steps=9, **settings | {"internal_schedule": "1:2,3:2"}).train(resume_from_checkpoint=True)


def test_the_reason_of_auto_is_on_disk(tmp_path: Path) -> None:
    auto = {"internal_layer": "auto", "internal_rule": "agreement", "internal_norm": "final", "internal_samples": 4}
    trainer = make_trainer(tmp_path, max_steps=1, internal_steps=-1, **auto)
    trainer.train()
    kept = json.loads((tmp_path / "schedule.json").read_text())
    assert kept["choice"]["reason"] == trainer.choice.reason
    assert kept["phases"] == [{"layer": trainer.choice.layer, "rollout_steps": None, "first_step": 1, "last_step": None}]


def test_blocks_above_the_layer_never_run(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path, internal_layer=2, internal_steps=-1)
    calls: list[int] = []
    for number, block in enumerate(trainer.model.model.layers, 1):
        block.register_forward_hook(lambda *_, number=number: calls.append(number))
    trainer.current_gradient_accumulation_steps = 1
    trainer._compute_loss(trainer.model, {**fixed_batch(), LAYER: torch.tensor(2)}).backward()
    assert calls == [1, 2]


def test_the_cut_leaves_the_model_whole_after_an_error() -> None:
    model = tiny_model("qwen3")
    ids = torch.tensor([random_ids(5)])
    before = model(ids).logits
    with pytest.raises(RuntimeError), truncated_at(model, 2):
        raise RuntimeError
    assert len(model.model.layers) == 4
    assert torch.equal(model(ids).logits, before)
    with pytest.raises(SelectionError, match=r"1\.\.4"), truncated_at(model, 5):
        pass


def test_frozen_layers_and_layer_wise_rates(tmp_path: Path) -> None:
    model = tiny_model("qwen3")
    before = {name: weight.clone() for name, weight in model.named_parameters()}
    trainer = make_trainer(tmp_path, model, freeze_layers=1, layer_lr_factors="3-4:0.0", weight_decay=0.0, max_steps=2)
    assert ("layer 1", "frozen") in trainer.plan()
    assert ("layers 3-4", "learning rate x 0") in trainer.plan()
    trainer.train()
    moved = {name for name, weight in model.named_parameters() if not torch.equal(weight, before[name])}
    assert moved
    assert all(name.startswith(("model.layers.1.", "model.norm", "lm_head")) for name in moved)
    rates = {group["layer_lr_factor"]: group["lr"] for group in trainer.optimizer.optimizer.param_groups}
    assert rates == {0.0: 0.0, 1.0: 1e-2}


def test_auto_chooses_on_the_training_prompts_or_says_why_not(tmp_path: Path) -> None:
    trainer = make_trainer(
        tmp_path, internal_layer="auto", internal_steps=1, internal_rule="agreement", internal_norm="final", internal_samples=4
    )
    assert trainer.choice.rule == "agreement"
    assert trainer.schedule.phases == ((trainer.choice.layer, 1),)
    with pytest.raises(TrainingError, match=r"found no layer to train: .*ΔS.*\. Name one, or choose another internal_rule"):
        make_trainer(tmp_path, internal_layer="auto", internal_steps=1, internal_samples=4)


def test_auto_is_held_to_what_a_named_layer_is(tmp_path: Path) -> None:
    auto = {"internal_layer": "auto", "internal_rule": "entropy_drop", "internal_samples": 4, "internal_steps": 1}
    chosen = make_trainer(tmp_path, **auto).choice.layer
    with pytest.raises(TrainingError, match=f"freeze_layers=3 leaves nothing but the unembedding to train in layer {chosen}'s policy"):
        make_trainer(tmp_path, freeze_layers=3, **auto)


@pytest.mark.parametrize("layer", [2, "auto"])
def test_layers_above_the_trained_one_learn_slower(layer: int | str, tmp_path: Path) -> None:
    auto = {"internal_rule": "entropy_drop", "internal_samples": 4} if layer == "auto" else {}
    trainer = make_trainer(tmp_path, internal_layer=layer, internal_steps=1, layer_lr_decay=0.1, **auto)
    [(trained, _)] = trainer.schedule.phases
    assert trainer.layer_factors == {number: 1.0 if number <= trained else 0.1 for number in range(1, 5)}
    assert any(how == "learning rate x 0.1" for _, how in trainer.plan())


def test_probes_are_asked_as_training_asks(tmp_path: Path) -> None:
    args = BuPOConfig(
        output_dir=str(tmp_path), use_cpu=True, bf16=False, report_to="none", max_completion_length=4,
        chat_template_kwargs={"enable_thinking": True},
    )  # fmt: skip
    asked = Dataset.from_dict({"prompt": [[{"role": "user", "content": "w9 w8"}]] * 8})
    trainer = BuPOTrainer(tiny_model("qwen3"), reward, args, train_dataset=asked, processing_class=tiny_tokenizer())
    [probe] = trainer._prompts(1)
    assert trainer.processing_class.decode(probe.token_ids).startswith("think user w9")
    assert [list(probe.token_ids)] == trainer._tokenize_prompts([asked[0]["prompt"]])[0]
