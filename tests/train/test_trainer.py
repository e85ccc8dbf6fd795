"""The identities of BuPO's objective, on small random models."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from torch import nn

from layerlens.decode.autograd import token_log_probs
from layerlens.errors import TrainingError
from layerlens.models import causal_lm, count_blocks
from layerlens.train import BuPOConfig, BuPOTrainer, trl_head
from layerlens.train.trainer import LAYER
from tests.support.tiny_models import tiny_model, tiny_tokenizer
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
def test_internal_log_probs_match_the_forward_of_all_blocks(architecture: str, tied: bool, norm: str, tmp_path: Path) -> None:
    model = tiny_model(architecture, tied=tied)
    trainer = make_trainer(tmp_path, model, internal_layer=2, internal_rollouts=1, internal_norm=norm)
    batch = fixed_batch()
    with torch.no_grad():
        for layer in range(1, 5):
            ours = logps_of(trainer, batch, layer) * batch["completion_mask"]
            plain = plain_logps(causal_lm(trainer.model), batch, layer, norm)
            torch.testing.assert_close(ours, plain, atol=1e-6, rtol=2.4e-7)  # 1e-6, or what two last bits of a float32 are


@pytest.mark.parametrize("loss_type", ["grpo", "bnpo", "dr_grpo", "dapo"])
def test_loss_and_gradients_of_the_last_layer_with_final_norm_are_grpo_bit_for_bit(loss_type: str, tmp_path: Path) -> None:
    gradients = []
    for layer in (None, 4):
        settings = {} if layer is None else {"internal_layer": layer, "internal_rollouts": -1, "internal_norm": "final"}
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


def test_internal_log_probs_use_the_readout_and_grpo_the_kernel_of_trl(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trainer = make_trainer(tmp_path, internal_layer=2, internal_rollouts=1)
    rows: list[int] = []

    def counted(hidden: torch.Tensor, *args: Any) -> Any:
        rows.append(len(hidden))
        return token_log_probs(hidden, *args)

    monkeypatch.setattr(trl_head, "token_log_probs", counted)
    logps_of(trainer, fixed_batch(), None)
    assert not rows
    logps_of(trainer, fixed_batch(), 2)
    assert rows == [4 * 10]  # every position of the batch that predicts one


@pytest.mark.parametrize("norm", ["none", "final"])
@pytest.mark.parametrize("loss_type", ["grpo", "bnpo", "dr_grpo", "dapo"])
def test_internal_loss_and_gradients_match_the_formula(loss_type: str, norm: str, tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path, internal_layer=2, internal_rollouts=-1, internal_norm=norm, loss_type=loss_type)
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


def test_internal_loss_runs_no_block_above_the_layer(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path, internal_layer=2, internal_rollouts=-1)
    calls: list[int] = []
    for number, block in enumerate(trainer.model.model.layers, 1):
        block.register_forward_hook(lambda *_, number=number: calls.append(number))
    trainer.current_gradient_accumulation_steps = 1
    trainer._compute_loss(trainer.model, {**fixed_batch(), LAYER: torch.tensor(2)}).backward()
    assert calls == [1, 2]


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("more", [{}, {"gradient_checkpointing": True}, {"beta": 0.1}, {"num_iterations": 2}, {"steps_per_generation": 2}])
def test_training_does_not_move_blocks_above_the_layer(more: dict[str, Any], tied: bool, tmp_path: Path) -> None:
    model = tiny_model("llama", tied=tied)
    if "beta" in more:
        model.save_pretrained(tmp_path / "model")  # the reference is loaded by name
        model.config._name_or_path = str(tmp_path / "model")
    before = {name: weight.clone() for name, weight in model.named_parameters()}
    trainer = make_trainer(
        tmp_path, model, internal_layer=2, internal_rollouts=-1, internal_norm="final" if "beta" in more else "none", max_steps=4, **more
    )
    trainer.train()
    moved = {name for name, weight in trainer.model.named_parameters() if not torch.equal(weight, before[name])}
    above = {name for name in before if name.startswith(("model.layers.2", "model.layers.3") + (() if "beta" in more else ("model.norm",)))}
    assert not moved & above
    assert {name for name in before if name.startswith(("model.layers.0", "model.layers.1"))} <= moved
    assert "model.embed_tokens.weight" in moved
    assert tied or "lm_head.weight" in moved


@pytest.mark.parametrize("adapters", ["none", "new", "the model's own"])
def test_reference_log_probs_are_those_of_the_internal_policy_before_training(adapters: str, tmp_path: Path) -> None:
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
        tmp_path, model, internal_layer=2, internal_rollouts=-1, internal_norm="final", beta=0.1, num_iterations=2,
        peft_config=lora if adapters == "new" else None,
    )  # fmt: skip
    with torch.no_grad():
        for weight in trainer.model.parameters():
            if weight.requires_grad:
                weight.add_(0.1 * torch.randn(weight.shape, generator=torch.Generator().manual_seed(0)))
    trainer.model.train()
    batch = trainer._generate_and_score_completions([trainer.train_dataset[0]] * 4)
    mask = batch["completion_mask"]
    with torch.no_grad():
        now, before = plain_logps(causal_lm(trainer.model), batch, 2, "final"), plain_logps(start, batch, 2, "final")
    torch.testing.assert_close(batch["old_per_token_logps"] * mask, now, atol=2e-6, rtol=1e-6)
    torch.testing.assert_close(batch["ref_per_token_logps"] * mask, before, atol=2e-6, rtol=1e-6)
    assert (now - before).abs().max() > 0.01


def test_lora_trains_in_both_phases(tmp_path: Path) -> None:
    from peft import LoraConfig

    trainer = make_trainer(
        tmp_path, internal_layer=2, internal_rollouts=1, internal_norm="final", beta=0.05, max_steps=2,
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


def test_probe_prompts_have_the_tokens_of_training_prompts(tmp_path: Path) -> None:
    args = BuPOConfig(
        output_dir=str(tmp_path), use_cpu=True, bf16=False, report_to="none", max_completion_length=4,
        chat_template_kwargs={"enable_thinking": True},
    )  # fmt: skip
    asked = Dataset.from_dict({"prompt": [[{"role": "user", "content": "w9 w8"}]] * 8})
    trainer = BuPOTrainer(tiny_model("qwen3"), reward, args, train_dataset=asked, processing_class=tiny_tokenizer())
    [probe] = trainer._prompts(1)
    assert trainer.processing_class.decode(probe.token_ids).startswith("think user w9")
    assert [list(probe.token_ids)] == trainer._tokenize_prompts([asked[0]["prompt"]])[0]


def test_what_is_logged_of_an_internal_policy_has_its_own_names(tmp_path: Path) -> None:
    trainer = make_trainer(
        tmp_path, internal_layer=2, internal_rollouts=1, internal_norm="final", max_steps=2, beta=0.1, **reference(tmp_path)
    )
    trainer.train()
    first, second = (entry for entry in trainer.state.log_history if "reward" in entry)
    of_the_loss = {"entropy", "kl", "clip_ratio/low_mean", "clip_ratio/high_max"}
    assert {f"internal/{name}" for name in of_the_loss} <= first.keys()
    assert not of_the_loss & first.keys()
    assert of_the_loss <= second.keys()
    assert not any(name.startswith("internal/") for name in second)
    assert {"reward", "completions/mean_length", "step_time", "bupo/internal_layer"} <= first.keys() & second.keys()


def reference(folder: Path) -> dict[str, Any]:
    """The model of a trainer with beta above 0, whose reference TRL loads by name."""
    model = tiny_model("llama")
    model.save_pretrained(folder / "model")
    model.config._name_or_path = str(folder / "model")
    return {"model": model}


@pytest.mark.parametrize(
    ("limits", "start", "end"),
    [
        ({"entropy_target": 100.0}, 0.0, 0.25),
        ({"entropy_target": 100.0, "entropy_coef_max": 0.1}, 0.0, 0.1),
        ({"entropy_target": 0.0, "entropy_coef_min": 0.4}, 0.5, 0.4),
    ],
)
def test_adaptive_entropy_control_rests_in_an_internal_phase_and_then_starts_as_in_grpo(
    limits: dict[str, float], start: float, end: float, tmp_path: Path
) -> None:
    adaptive = {"use_adaptive_entropy": True, "entropy_coef": start, "entropy_coef_delta": 0.25, "max_steps": 4, **limits}
    trainer = make_trainer(tmp_path / "a", internal_layer=2, internal_rollouts=2, **adaptive)
    states: list[tuple[int, float, float]] = []
    compute = trainer._compute_loss

    def watch(model: nn.Module, inputs: dict[str, Any]) -> torch.Tensor:
        states.append((int(inputs.get(LAYER, 0)), trainer.entropy_coef, trainer._last_world_entropy))
        return compute(model, inputs)

    trainer._compute_loss = watch
    trainer.train()
    assert [(layer, coef) for layer, coef, _ in states] == [(2, start), (2, start), (0, start), (0, end)]
    assert [entropy == float("inf") for *_, entropy in states] == [True, True, True, False]
    ended = []
    for name, settings in (("with control", adaptive), ("without", {"max_steps": 4})):
        trainer = make_trainer(tmp_path / name, internal_layer=2, internal_rollouts=-1, **settings)
        trainer.train()
        ended.append(trainer.model)
    for (name, a), b in zip(ended[0].named_parameters(), ended[1].parameters(), strict=True):
        assert torch.equal(a, b), name


def test_adapters_above_the_layer_alone_are_refused_when_the_trainer_is_built(tmp_path: Path) -> None:
    from peft import LoraConfig

    above = LoraConfig(r=2, target_modules=["q_proj"], layers_to_transform=[2, 3])
    with pytest.raises(TrainingError, match="no weight of layer 2's policy is trained: give adapters to blocks 1 to 2"):
        make_trainer(tmp_path, internal_layer=2, internal_rollouts=1, peft_config=above)
    make_trainer(tmp_path, internal_layer=3, internal_rollouts=1, peft_config=above)
    norm_alone = LoraConfig(r=2, target_modules=["q_proj"], layers_to_transform=[3], modules_to_save=["model.norm"])
    make_trainer(tmp_path, internal_layer=2, internal_rollouts=1, internal_norm="final", peft_config=norm_alone)
    with pytest.raises(TrainingError, match="no weight of layer 2's policy is trained"):
        make_trainer(tmp_path, internal_layer=2, internal_rollouts=1, peft_config=norm_alone)


@pytest.mark.parametrize("settings", [{"monitor_every": 1}, {"internal_layer": "auto", "internal_rollouts": 1}])
def test_what_needs_prompts_beforehand_is_refused_where_an_environment_makes_them(settings: dict[str, Any], tmp_path: Path) -> None:
    args = BuPOConfig(output_dir=str(tmp_path), use_cpu=True, bf16=False, report_to="none", **settings)
    with pytest.raises(TrainingError, match="prompts that an environment makes are not there before training"):
        BuPOTrainer(tiny_model("qwen3"), reward, args, environment_factory=object, processing_class=tiny_tokenizer())
