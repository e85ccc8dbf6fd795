"""Every option of TRL's GRPOConfig in an internal phase: right, as in GRPO, refused or without effect, as docs/training.md says."""

from __future__ import annotations

import copy
import os
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import pytest
import torch
from torch import Tensor, nn
from transformers.utils import logging
from trl import GRPOConfig, GRPOTrainer

from layerlens.errors import TrainingError
from layerlens.train import BuPOConfig, BuPOTrainer
from layerlens.train.trainer import LAYER
from tests.support import grpo_options as groups
from tests.support.architectures import tiny_architecture
from tests.support.tiny_models import tiny_model, tiny_tokenizer
from tests.support.training import fixed_batch, make_trainer, prompts, reward

pytestmark = pytest.mark.filterwarnings("default")  # TRL's and accelerate's own

ROOT = Path(__file__).parents[2]
LAST = {"internal_layer": 4, "internal_rollouts": -1, "internal_norm": "final"}
"""The internal phase that is GRPO."""


def test_every_option_is_in_one_group_and_the_docs_have_the_table() -> None:
    named = Counter(name for group in groups.GROUPS for name in group.names)
    assert set(named) == {field.name for field in fields(GRPOConfig)}
    assert [name for name, count in named.items() if count > 1] == []
    assert groups.table() in (ROOT / "docs" / "training.md").read_text(), "put the output of python -m tests.support.grpo_options there"


@pytest.mark.parametrize("file", sorted({group.test for group in groups.GROUPS if group.test}))
def test_every_option_is_named_in_the_file_that_shows_what_it_does(file: str) -> None:
    text = (ROOT / "tests" / "train" / file).read_text()
    named = [name for group in groups.GROUPS if group.test == file for name in group.names]
    assert [name for name in named if not re.search(rf"\b{name}\b", text)] == []


# ---- the objective

OBJECTIVE: list[dict[str, Any]] = [
    *({"loss_type": name} for name in ("grpo", "bnpo", "dapo", "cispo")),
    {"loss_type": "dr_grpo", "max_completion_length": 9},
    {"loss_type": "luspo", "importance_sampling_level": "sequence"},
    {"loss_type": "sapo", "sapo_temperature_pos": 0.5, "sapo_temperature_neg": 2.0},
    {"loss_type": "vespo", "vespo_k_pos": 1.5, "vespo_k_neg": 2.5, "vespo_lambda_pos": 2.0, "vespo_lambda_neg": 1.5},
    {"epsilon": 0.05, "epsilon_high": 0.1},
    {"delta": 1.2},
    {"temperature": 0.7},
    {"importance_sampling_level": "sequence", "loss_type": "grpo"},
    {"beta": 0.1},
    {"beta": 0.1, "use_bias_correction_kl": False},
    {"entropy_coef": 0.05},
    {"top_entropy_quantile": 0.5},
    {"off_policy_mask_threshold": 0.01},
    {"pad_to_multiple_of": 4},
    {"cast_lm_head_to_fp32": True},
    {"vllm_importance_sampling_correction": True},
]


def cut(model: nn.Module, layer: int, norm: str) -> nn.Module:
    """A model that ends with block `layer`, and has the final norm behind it if `norm` is "final"."""
    ended = copy.deepcopy(model)
    ended.model.layers = nn.ModuleList(list(ended.model.layers)[:layer])
    ended.config.num_hidden_layers = layer
    if norm == "none":
        ended.model.norm = nn.Identity()
    return ended


def both(folder: Path, model: nn.Module, norm: str, **options: Any) -> tuple[BuPOTrainer, GRPOTrainer]:
    """A trainer of layer 2's policy, and TRL's own of the model that ends there."""
    if options.get("beta"):  # whose reference TRL loads by name
        model.save_pretrained(folder / "model")
        model.config._name_or_path = str(folder / "model")
    ended = cut(model, 2, norm)
    ours = make_trainer(folder, model, internal_layer=2, internal_rollouts=-1, internal_norm=norm, **options)
    settings = {name: getattr(ours.args, name) for name in ("per_device_train_batch_size", "num_generations", "max_completion_length")}
    args = GRPOConfig(str(folder), use_cpu=True, bf16=False, report_to="none", gradient_checkpointing=False, **settings | options)
    return ours, GRPOTrainer(ended, reward, args, prompts(), processing_class=tiny_tokenizer(None))


def backward(trainer: GRPOTrainer, batch: dict[str, Any]) -> tuple[Tensor, dict[str, Tensor]]:
    trainer.current_gradient_accumulation_steps = 1
    trainer.use_vllm = "importance_sampling_ratio" in batch
    trainer.model.train()
    loss = trainer._compute_loss(trainer.model, batch)
    loss.backward()
    return loss.detach(), {name: weight.grad for name, weight in trainer.model.named_parameters() if weight.grad is not None}


def require_equal(ours: tuple[Tensor, dict[str, Tensor]], theirs: tuple[Tensor, dict[str, Tensor]], bound: float) -> None:
    torch.testing.assert_close(ours[0], theirs[0], atol=1e-6, rtol=bound)
    assert ours[1].keys() == theirs[1].keys()
    assert any(gradient.any() for gradient in theirs[1].values())
    for name, gradient in theirs[1].items():
        assert float((ours[1][name] - gradient).norm()) <= bound * float(gradient.norm()) + 1e-6, name


@pytest.mark.parametrize("norm", ["none", "final"])
@pytest.mark.parametrize("options", OBJECTIVE, ids=lambda options: " ".join(f"{k}={v}" for k, v in options.items())[:60])
def test_the_internal_objective_is_grpo_on_the_model_that_ends_with_the_layer(options: dict[str, Any], norm: str, tmp_path: Path) -> None:
    if options.get("beta") and norm == "none":
        with pytest.raises(TrainingError, match="beta > 0 needs internal_norm='final'"):
            make_trainer(tmp_path, internal_layer=2, internal_rollouts=-1, **options)
        return
    ours, theirs = both(tmp_path, tiny_model("qwen3"), norm, **options)
    batch, noise = fixed_batch(), torch.Generator().manual_seed(1)
    old = ours._internal_logps(ours.model, batch, 2) + 0.3 * torch.randn(4, 6, generator=noise)
    batch |= {"old_per_token_logps": old, "ref_per_token_logps": old + 0.3 * torch.randn(4, 6, generator=noise)}
    if "vllm_importance_sampling_correction" in options:
        batch["importance_sampling_ratio"] = 0.5 + torch.rand(4, 6, generator=noise)
    require_equal(backward(ours, {**batch, LAYER: torch.tensor(2)}), backward(theirs, batch), 2e-5)


def test_the_router_loss_is_that_of_the_blocks_up_to_the_layer(tmp_path: Path) -> None:
    ours, theirs = both(tmp_path, tiny_architecture("qwen3_moe"), "none", router_aux_loss_coef=0.5)
    assert ours.aux_loss_enabled
    require_equal(backward(ours, {**fixed_batch(), LAYER: torch.tensor(2)}), backward(theirs, fixed_batch()), 2e-5)


def test_every_option_of_the_objective_is_exercised() -> None:
    assert {name for options in OBJECTIVE for name in options} | {"router_aux_loss_coef"} == set(groups.OBJECTIVE.names)


# ---- the rollout

ROLLOUT: list[dict[str, Any]] = [
    {"top_p": 0.9, "top_k": 50, "min_p": 0.01, "repetition_penalty": 1.2, "generation_kwargs": {"suppress_tokens": [9]}},
    {"num_generations": 2, "cache_implementation": "static", "seed": 3, "shuffle_dataset": False},
    {"scale_rewards": "batch", "reward_weights": [0.5], "mask_truncated_completions": True},
    {
        "multi_objective_aggregation": "normalize_then_sum", "max_tool_calling_iterations": 1,
        "chat_template_kwargs": {"enable_thinking": True},
    },
]  # fmt: skip


@pytest.mark.parametrize("options", ROLLOUT, ids=lambda options: " ".join(options)[:60])
def test_a_rollout_of_an_internal_phase_is_one_of_grpo(options: dict[str, Any], tmp_path: Path) -> None:
    batches = []
    for phase in ({"internal_layer": 2, "internal_rollouts": -1}, {"internal_rollouts": 0}):
        trainer = make_trainer(tmp_path, **phase, num_iterations=2, max_completion_length=60, **options)
        trainer.model.train()
        batches.append(trainer._generate_and_score_completions([row for row in prompts() for _ in range(4)][:4]))
    internal, grpo = batches
    assert internal.keys() - {LAYER} == grpo.keys()
    assert not torch.equal(internal.pop("old_per_token_logps"), grpo.pop("old_per_token_logps"))
    for name, values in grpo.items():
        assert torch.equal(internal[name], values), name


def test_every_option_of_the_rollout_is_exercised() -> None:
    assert {name for options in ROLLOUT for name in options} == set(groups.ROLLOUT.names)


# ---- optimizer steps, logs and checkpoints

STEPS: list[dict[str, Any]] = [
    {
        "learning_rate": 3e-3, "lr_scheduler_type": "cosine_with_min_lr", "lr_scheduler_kwargs": {"min_lr": 1e-4}, "warmup_steps": 1,
        "weight_decay": 0.05, "adam_beta1": 0.8, "adam_beta2": 0.95, "adam_epsilon": 1e-6, "max_grad_norm": 0.5,
        "disable_dropout": True, "neftune_noise_alpha": 5.0, "dataloader_pin_memory": False, "report_to": "none", "run_name": "x",
        "torch_empty_cache_steps": 1, "debug": "underflow_overflow", "log_level": "error", "full_determinism": True,
    },
    {
        "optim": "sgd", "optim_args": "momentum=0.9", "gradient_accumulation_steps": 2, "steps_per_generation": 4, "num_iterations": 2,
        "num_train_epochs": 1.0,
        "gradient_checkpointing": True, "gradient_checkpointing_kwargs": {"use_reentrant": False}, "max_steps": -1, "use_cpu": True,
        "dataloader_num_workers": 1, "dataloader_prefetch_factor": 1, "dataloader_persistent_workers": True, "dataloader_in_order": False,
        "dataloader_drop_last": True, "per_device_train_batch_size": 8, "ignore_data_skip": True,
    },
    {
        "generation_batch_size": 8, "activation_checkpointing": True, "activation_checkpointing_kwargs": {"use_reentrant": True},
        "bf16": True, "logging_strategy": "steps", "logging_steps": 2, "logging_first_step": True, "log_completions": True,
        "num_completions_to_print": 1, "log_unique_prompts": True, "include_num_input_tokens_seen": "all", "disable_tqdm": False,
        "remove_unused_columns": False,
    },
    {
        "beta": 0.1, "sync_ref_model": True, "ref_model_mixup_alpha": 0.5, "ref_model_sync_steps": 1,
        "save_strategy": "steps", "save_steps": 1, "save_total_limit": 1, "save_only_model": True, "save_on_each_node": True,
        "model_init_kwargs": {"attn_implementation": "eager"},
    },
]  # fmt: skip


@pytest.fixture
def as_before() -> Iterator[None]:
    """Takes back what `log_level` and `full_determinism` set for the whole process."""
    verbosity = logging.get_verbosity()
    with mock.patch.dict(os.environ):
        yield
    logging.set_verbosity(verbosity)
    torch.use_deterministic_algorithms(False)
    torch.backends.cudnn.deterministic = False


@pytest.mark.usefixtures("as_before")
@pytest.mark.parametrize("options", STEPS, ids=lambda options: " ".join(options)[:60])
def test_two_steps_of_the_last_layers_phase_are_two_steps_of_grpo(options: dict[str, Any], tmp_path: Path) -> None:
    ended = []
    for phase in (LAST, {"internal_rollouts": 0}):
        folder, model = tmp_path / str(len(ended)), tiny_model("qwen3")
        model.save_pretrained(tmp_path / "model")
        model.config._name_or_path = str(tmp_path / "model")
        trainer = make_trainer(folder, str(tmp_path / "model") if "model_init_kwargs" in options else model, **phase | options)
        trainer.train()
        ended.append((trainer, sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*"))))
    (internal, ours), (grpo, theirs) = ended
    assert ours == theirs
    for (name, a), b in zip(internal.model.named_parameters(), grpo.model.named_parameters(), strict=True):
        assert torch.equal(a, b[1]), name
    for a, b in zip(internal.state.log_history, grpo.state.log_history, strict=True):
        assert {name.removeprefix("internal/") for name in a} == b.keys()


def test_every_option_of_the_steps_is_exercised() -> None:
    assert {name for options in STEPS for name in options} | {"output_dir"} - {"beta"} == set(groups.STEPS.names) | {"beta"}


def test_evaluation_in_an_internal_phase_is_of_the_final_policy(tmp_path: Path) -> None:
    found = []
    for phase in ({"internal_layer": 2, "internal_rollouts": -1}, {"internal_rollouts": 0}):
        args = BuPOConfig(
            str(tmp_path / str(len(found))), use_cpu=True, bf16=False, report_to="none", max_steps=1, max_completion_length=6,
            per_device_train_batch_size=4, num_generations=4, per_device_eval_batch_size=4, num_generations_eval=2, learning_rate=0.0,
            eval_strategy="steps", eval_steps=1, eval_delay=0, eval_on_start=True, do_eval=True, save_strategy="steps", save_steps=1,
            load_best_model_at_end=True, metric_for_best_model="eval_reward", greater_is_better=True, disable_tqdm=True, **phase,
        )  # fmt: skip
        trainer = BuPOTrainer(tiny_model("qwen3"), reward, args, prompts(), prompts(4), tiny_tokenizer(None))
        trainer.train()
        found.append([entry for entry in trainer.state.log_history if "eval_reward" in entry])
    internal, grpo = found
    assert len(internal) == len(grpo) == 2
    for a, b in zip(internal, grpo, strict=True):
        assert a.keys() == b.keys()
        assert a["eval_entropy"] == pytest.approx(b["eval_entropy"])
        assert a["eval_reward"] == b["eval_reward"]


WITHOUT_EFFECT: dict[str, Any] = {
    "label_smoothing_factor": 0.1, "label_names": ["y"], "average_tokens_across_devices": False, "prediction_loss_only": True,
    "include_for_metrics": ["loss"], "eval_do_concat_batches": False, "eval_use_gather_object": True,
    "eval_accumulation_steps": 1, "train_sampling_strategy": "sequential", "length_column_name": "x", "data_seed": 7, "use_cache": True,
    "do_train": True, "do_predict": True, "resume_from_checkpoint": "nowhere", "local_rank": -1, "logging_nan_inf_filter": False,
    "liger_kernel_config": {"rope": False}, "ds3_gather_for_generation": False,
}  # fmt: skip


def test_options_without_effect_have_none(tmp_path: Path) -> None:
    assert WITHOUT_EFFECT.keys() == {*groups.NO_EFFECT.names, *groups.IDLE.names}
    ended = []
    for options in (WITHOUT_EFFECT, {}):
        trainer = make_trainer(tmp_path, internal_layer=2, internal_rollouts=1, **options)
        trainer.train()
        ended.append(trainer.model)
    for (name, a), b in zip(ended[0].named_parameters(), ended[1].parameters(), strict=True):
        assert torch.equal(a, b), name


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"auto_find_batch_size": True}, "auto_find_batch_size is not supported by GRPO"),
        ({"parallelism_config": SimpleNamespace(cp_enabled=True, sp_enabled=False)}, "does not support sequence-dim parallelism"),
    ],
)
def test_what_trl_refuses_is_refused(options: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=message):
        make_trainer(tmp_path, internal_layer=2, internal_rollouts=1, **options)
