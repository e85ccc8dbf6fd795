"""Distillation into a layer, and tokens chosen by a layer's policy."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from trl import GRPOTrainer

from layerlens.errors import TrainingError
from layerlens.metrics.settling import settling_depth
from layerlens.results.training_log import open_training
from layerlens.train import BuPOTrainer
from layerlens.train.trainer import LAYER
from tests.support.tiny_models import tiny_model
from tests.support.training import fixed_batch, make_trainer, trained_layers

pytestmark = pytest.mark.filterwarnings("default")  # TRL's and accelerate's own

DISTIL: dict[str, Any] = {"internal_loss": "distill", "distill_layers": "2", "distill_lambda": 0.5}


def loss_and_gradients(trainer: BuPOTrainer, batch: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor | None]]:
    trainer.current_gradient_accumulation_steps = 1
    trainer.model.train()
    trainer.model.zero_grad()
    loss = trainer._compute_loss(trainer.model, batch)
    loss.backward()
    return loss.detach(), {name: None if w.grad is None else w.grad.clone() for name, w in trainer.model.named_parameters()}


def logits_of_layers(model: nn.Module, batch: dict[str, Tensor]) -> list[Tensor]:
    """The logits under norm final of each layer's policy at the answers' tokens, by a forward through all blocks."""
    ids, mask = (torch.cat([batch[f"prompt_{name}"], batch[f"completion_{name}"]], 1) for name in ("ids", "mask"))
    states: list[Tensor] = []
    hooks = [
        block.register_forward_hook(lambda m, a, out: states.append(out if isinstance(out, Tensor) else out[0]))
        for block in model.model.layers
    ]
    model.model(input_ids=ids, attention_mask=mask, use_cache=False)
    for hook in hooks:
        hook.remove()
    width = batch["completion_ids"].size(1)
    return [model.lm_head(model.model.norm(state))[:, -width - 1 : -1] for state in states]


def js_of(p: Tensor, q: Tensor) -> Tensor:
    m = (p + q) / 2
    return ((p * (p / m).log()).sum(-1) + (q * (q / m).log()).sum(-1)) / 2 / np.log(2)


@pytest.mark.parametrize("weights", ["one", "positive", "absolute"])
@pytest.mark.parametrize(("architecture", "layers"), [("qwen3", "2"), ("llama", "1,3")])
def test_the_loss_is_grpo_plus_the_weighted_divergence_with_its_gradient(
    weights: str, architecture: str, layers: str, tmp_path: Path
) -> None:
    settings = {"distill_layers": layers, "distill_weights": weights, "temperature": 0.8}
    model, batch = tiny_model(architecture), fixed_batch()
    exact = copy.deepcopy(model).double()
    loss, found = loss_and_gradients(make_trainer(tmp_path, model, **DISTIL | settings), batch)
    grpo, plain = loss_and_gradients(make_trainer(tmp_path, model, temperature=0.8), batch)

    *lower, last = [(z / 0.8).softmax(-1) for z in logits_of_layers(exact, batch)]
    w = {"one": torch.ones(4), "positive": batch["advantages"].clamp(min=0), "absolute": batch["advantages"].abs()}[weights]
    chosen = [int(layer) for layer in layers.split(",")]
    mask = batch["completion_mask"].double()
    divergence = sum((w[:, None] * mask * js_of(lower[layer - 1], last.detach())).sum() for layer in chosen)
    expected = 0.5 * divergence / len(chosen) / mask.sum()
    expected.backward()
    assert float(loss - grpo) == pytest.approx(float(expected), abs=1e-6)
    for name, weight in exact.named_parameters():
        added = found[name] - plain[name]
        if weight.grad is None:  # the blocks above the layer
            assert not added.any(), name
        else:
            torch.testing.assert_close(added.double(), weight.grad, atol=1e-6, rtol=1e-4, msg=name)


def test_a_step_of_two_micro_batches_is_that_of_one_batch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(GRPOTrainer, "_generate_and_score_completions", lambda self, inputs: fixed_batch())
    ended = []
    for accumulated in (1, 2):  # fixed_batch has an answer that is shorter: micro-batches differ in their numbers of tokens
        trainer = make_trainer(
            tmp_path, tiny_model("qwen3"), **DISTIL, per_device_train_batch_size=4 // accumulated, gradient_accumulation_steps=accumulated,
            max_steps=1, optim="sgd", learning_rate=1.0, weight_decay=0.0, max_grad_norm=0.0,
        )  # fmt: skip
        trainer.train()
        ended.append(trainer.model)
    for (name, a), b in zip(ended[0].named_parameters(), ended[1].parameters(), strict=True):
        torch.testing.assert_close(b, a, atol=1e-6, rtol=1e-5, msg=name)


def test_a_step_on_half_a_rollout_divides_by_half_of_its_tokens_as_trl_does(tmp_path: Path) -> None:
    trainers = [make_trainer(tmp_path, tiny_model("qwen3"), **DISTIL, steps_per_generation=steps) for steps in (1, 2)]
    whole, half = (loss_and_gradients(trainer, fixed_batch()) for trainer in trainers)
    assert float(half[0]) == pytest.approx(2 * float(whole[0]), rel=1e-5)
    for name, gradient in whole[1].items():
        torch.testing.assert_close(half[1][name], 2 * gradient, atol=1e-6, rtol=1e-5, msg=name)


@pytest.mark.parametrize(
    "settings", [{**DISTIL, "distill_lambda": 0.0}, {"token_signal": "entropy", "token_layer": 2, "token_quantile": 1.0}]
)
def test_weight_zero_and_all_tokens_are_grpo_bit_for_bit(settings: dict[str, Any], tmp_path: Path) -> None:
    ended = []
    for number, more in enumerate((settings, {})):
        trainer = make_trainer(tmp_path / str(number), tiny_model("qwen3"), **more)
        trainer.train()
        ended.append(trainer.model)
    for (name, a), b in zip(ended[0].named_parameters(), ended[1].parameters(), strict=True):
        assert torch.equal(a, b), name


@pytest.mark.parametrize("more", [{}, {"activation_checkpointing": True}, {"pad_to_multiple_of": 4}, {"lora": True}])
def test_distillation_brings_the_layers_policy_to_the_final_one(more: dict[str, Any], tmp_path: Path) -> None:
    from peft import LoraConfig

    more = dict(more)
    if more.pop("lora", False):
        more |= {"peft_config": LoraConfig(r=4, target_modules="all-linear")}
    trainer = make_trainer(
        tmp_path, tiny_model("qwen3"), **DISTIL | {"distill_lambda": 50.0}, max_steps=8, learning_rate=1e-2, weight_decay=0.0, **more
    )
    assert ("distillation into layer 2", "50 x JS to the final policy, weights one, norm final") in trainer.plan()
    trainer.train()
    found = [entry["distill/js_layer_2"] for entry in trainer.state.log_history if "distill/js_layer_2" in entry]
    assert len(found) == 8
    assert found[-1] < 0.97 * found[0]
    trainer.save_state()
    assert open_training(tmp_path).objective == "layer 2 distilled (λ = 50, weights one)"


def test_with_an_internal_phase_distillation_rests_in_it_and_then_acts(tmp_path: Path) -> None:
    settings = {**DISTIL, "internal_layer": 3, "internal_rollouts": 1, "max_steps": 2}
    trainer = make_trainer(tmp_path / "both", tiny_model("qwen3"), **settings)
    assert trainer.plan()[-1][1].endswith("rests in an internal phase")
    assert trained_layers(trainer) == [3, 0]
    entries = [entry for entry in trainer.state.log_history if "loss" in entry]
    assert ["distill/js_layer_2" in entry for entry in entries] == [False, True]
    alone = make_trainer(tmp_path / "phase", internal_layer=3, internal_rollouts=1)
    batch = fixed_batch() | {LAYER: torch.tensor(3)}
    ours, theirs = loss_and_gradients(make_trainer(tmp_path, tiny_model("qwen3"), **settings), batch), loss_and_gradients(alone, batch)
    assert torch.equal(ours[0], theirs[0])


# ---- token masks


def watched_masks(trainer: BuPOTrainer, batch: dict[str, Tensor]) -> Tensor:
    """The mask of the tokens that count, in the loss of a batch."""
    masks: list[Tensor] = []
    make = trainer.get_high_entropy_mask
    trainer.get_high_entropy_mask = lambda *args: masks.append(make(*args)) or masks[-1]
    loss_and_gradients(trainer, batch)
    [mask] = masks
    return mask


@pytest.mark.parametrize("quantile", [0.2, 0.5])
def test_entropy_at_the_last_layer_is_trls_top_entropy_quantile(quantile: float, tmp_path: Path) -> None:
    ended = []
    for number, more in enumerate(
        ({"token_signal": "entropy", "token_layer": 4, "token_quantile": quantile}, {"top_entropy_quantile": quantile})
    ):
        trainer = make_trainer(tmp_path / str(number), tiny_model("qwen3"), num_iterations=2, **more)
        trainer.train()
        ended.append(trainer)
    for (name, a), b in zip(ended[0].model.named_parameters(), ended[1].model.parameters(), strict=True):
        assert torch.equal(a, b), name
    logged = [entry["token_mask/kept"] for entry in ended[0].state.log_history if "token_mask/kept" in entry]
    assert all(0 < share <= 1 for share in logged)
    assert len(logged) == 2
    masks = [watched_masks(trainer, fixed_batch()) for trainer in ended]
    assert torch.equal(*masks)
    assert 0 < masks[0].sum() < fixed_batch()["completion_mask"].sum()


@pytest.mark.parametrize("signal", ["entropy", "kl_to_final", "settling_depth"])
def test_the_tokens_that_count_are_those_of_the_largest_signal(signal: str, tmp_path: Path) -> None:
    at = {} if signal == "settling_depth" else {"token_layer": 2}
    model, batch = tiny_model("llama"), fixed_batch()
    mask = watched_masks(make_trainer(tmp_path, model, token_signal=signal, token_quantile=0.3, **at), batch)
    with torch.no_grad():
        policies = [z.double().softmax(-1) for z in logits_of_layers(model, batch)]
    p, q = policies[1], policies[-1]
    values = {
        "entropy": lambda: -(p * p.log()).sum(-1),
        "kl_to_final": lambda: (p * (p / q).log()).sum(-1),
        "settling_depth": lambda: torch.from_numpy(
            settling_depth(torch.stack([js_of(each, q) for each in policies], -1).flatten(0, 1).numpy()).reshape(4, 6)
        ),
    }[signal]()
    counted = batch["completion_mask"].bool()
    threshold = torch.quantile(values[counted].float(), 0.7)
    assert torch.equal(mask, (values.float() >= threshold) & counted)
    assert 0 < mask.sum() < counted.sum() or signal == "settling_depth"


def test_a_run_of_masks_and_distillation_resumes_exactly_and_refuses_another_objective(tmp_path: Path) -> None:
    settings = {
        **DISTIL, "token_signal": "settling_depth", "token_quantile": 0.5, "save_strategy": "steps", "save_steps": 1, "num_iterations": 2
    }  # fmt: skip
    whole, stopped = tiny_model("qwen3"), tiny_model("qwen3")
    make_trainer(tmp_path / "whole", whole, max_steps=3, **settings).train()
    make_trainer(tmp_path / "stopped", stopped, max_steps=1, **settings).train()
    resumed = make_trainer(tmp_path / "stopped", stopped, max_steps=3, **settings)
    resumed.train(resume_from_checkpoint=True)
    for (name, a), b in zip(whole.named_parameters(), resumed.model.parameters(), strict=True):
        assert torch.equal(a, b), name
    for other in ({"distill_lambda": 0.4}, {"token_quantile": 0.4}, {"internal_loss": "none", "distill_layers": None}):
        with pytest.raises(TrainingError, match="had another schedule"):
            make_trainer(tmp_path / "stopped", max_steps=4, **settings | other).train(resume_from_checkpoint=True)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"internal_loss": "distil"}, "internal_loss is distill or none"),
        ({"internal_loss": "distill"}, "needs distill_layers"),
        ({"distill_layers": "2"}, "distill_layers needs internal_loss=distill"),
        ({"distill_lambda": 0.7}, "distill_lambda needs internal_loss=distill"),
        ({"distill_weights": "positive"}, "distill_weights needs internal_loss=distill"),
        ({**DISTIL, "freeze_layers": 2}, "freeze_layers=2 leaves nothing but norm and unembedding to distill into layer 2"),
        ({"token_quantile": 0.5}, "token_quantile needs token_signal: entropy, kl_to_final, settling_depth"),
        ({**DISTIL, "distill_layers": "all"}, "distill_layers are like 7 or 4,8"),
        ({**DISTIL, "distill_layers": "4"}, "layer 4 is the last"),
        ({**DISTIL, "distill_layers": "5"}, "the model has 4 layers; distill_layers asks for layer 5"),
        ({**DISTIL, "distill_weights": "two"}, "distill_weights is one of one, positive, absolute"),
        ({**DISTIL, "distill_lambda": -1.0}, "distill_lambda must be 0 or more"),
        ({**DISTIL, "train_layers": "3"}, "leaves nothing that distillation at layer 2 could train"),
        ({**DISTIL, "internal_layer": 2, "internal_rollouts": -1}, "lasts for the whole run: give it fewer rollouts"),
        ({**DISTIL, "internal_layer": 2, "internal_rollouts": 2, "max_steps": 2}, "lasts for the whole run: give it fewer rollouts"),
        ({**DISTIL, "use_liger_kernel": True}, "Liger's fused loss"),
        ({**DISTIL, "fsdp": "full_shard"}, "spread over processes"),
        (
            {**DISTIL, "activation_checkpointing": True, "activation_checkpointing_kwargs": {"use_reentrant": True}},
            "reentrant checkpointing hides the gradients that distillation needs",
        ),
        ({"token_signal": "loss"}, "token_signal is one of entropy, kl_to_final, settling_depth"),
        ({"token_layer": 2}, "token_layer needs token_signal"),
        ({"token_signal": "settling_depth", "token_layer": 2}, "leave token_layer out"),
        ({"token_signal": "entropy"}, "needs token_layer"),
        ({"token_signal": "kl_to_final", "token_layer": 4}, "is 0 for each token"),
        ({"token_signal": "entropy", "token_layer": 7}, "token_layer asks for layer 7"),
        ({"token_signal": "entropy", "token_layer": 2, "token_quantile": 0.0}, "token_quantile is a share above 0"),
        ({"token_signal": "entropy", "token_layer": 2, "top_entropy_quantile": 0.5}, "either token_signal or top_entropy_quantile"),
    ],
)
def test_contradictions_are_refused(settings: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match=message):
        make_trainer(tmp_path, **settings)


@pytest.mark.parametrize(
    "settings",
    [
        DISTIL, {"token_signal": "entropy", "token_layer": 2}, {"token_signal": "kl_to_final", "token_layer": 2},
        {"token_signal": "settling_depth"}, {**DISTIL, "token_signal": "settling_depth"},
    ],
)  # fmt: skip
def test_a_micro_batch_without_a_token_that_counts_adds_nothing(settings: dict[str, Any], tmp_path: Path) -> None:
    batch = fixed_batch()
    batch["completion_mask"] = torch.zeros_like(batch["completion_mask"])  # mask_truncated_completions, and all were cut
    trainer = make_trainer(tmp_path, **settings)
    loss, gradients = loss_and_gradients(trainer, batch)
    assert loss == 0
    assert not any(gradient.any() for gradient in gradients.values() if gradient is not None)
    assert all(np.isnan(value) for name, values in trainer._metrics["train"].items() for value in values if "distill/" in name)


def test_adapters_above_the_layer_alone_distil_nothing(tmp_path: Path) -> None:
    from peft import LoraConfig

    adapters = LoraConfig(r=4, target_modules=["q_proj", "v_proj"], layers_to_transform=[2, 3])
    with pytest.raises(TrainingError, match="no weight of layer 2's policy is trained: give adapters to blocks 1 to 2"):
        make_trainer(tmp_path, **DISTIL, peft_config=adapters)


def test_a_compiled_model_is_refused_however_it_is_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ACCELERATE_DYNAMO_BACKEND", "EAGER")
    with pytest.raises(TrainingError, match="distillation reads states inside the forward pass, which torch_compile fixes"):
        make_trainer(tmp_path, **DISTIL)


def test_the_layer_to_distil_into_is_the_internal_one_by_default(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path, internal_loss="distill", internal_layer=3, internal_rollouts=0)
    assert trainer.args.distilled_layers == (3,)
