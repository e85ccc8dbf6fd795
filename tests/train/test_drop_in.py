"""Without an internal phase BuPOTrainer takes the models, the constructor's forms and the options that TRL's GRPOTrainer takes."""

from __future__ import annotations

import inspect
from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from torch import nn
from transformers import GPT2Config, GPT2LMHeadModel, OpenAIGPTConfig, OpenAIGPTLMHeadModel
from trl import GRPOConfig, GRPOTrainer

from layerlens.errors import TrainingError
from layerlens.models import LAYOUTS
from layerlens.train import BuPOConfig, BuPOTrainer
from tests.support.tiny_models import tiny_model, tiny_tokenizer
from tests.support.training import prompts, reward

pytestmark = pytest.mark.filterwarnings("default")  # TRL's and accelerate's own

SETTINGS: dict[str, Any] = {
    "per_device_train_batch_size": 4, "num_generations": 4, "max_completion_length": 6, "max_steps": 2, "learning_rate": 1e-2,
    "use_cpu": True, "bf16": False, "report_to": "none", "save_strategy": "no", "disable_tqdm": True, "gradient_checkpointing": False,
}  # fmt: skip


def saved(folder: Path, model: nn.Module) -> str:
    model.save_pretrained(folder)
    tiny_tokenizer(None).save_pretrained(folder)
    return str(folder)


def test_the_constructor_is_that_of_grpo_trainer_in_names_and_order() -> None:
    ours, theirs = (list(inspect.signature(cls.__init__).parameters.values()) for cls in (BuPOTrainer, GRPOTrainer))
    assert [(each.name, each.default) for each in ours[:4]] == [(each.name, each.default) for each in theirs[:4]]
    assert [each.kind.name for each in ours[4:]] == ["VAR_POSITIONAL", "VAR_KEYWORD"]


def test_a_name_and_a_reward_are_enough(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    built = GRPOConfig.__post_init__

    def on_cpu(self: GRPOConfig) -> None:  # its defaults are for a GPU
        self.use_cpu, self.bf16 = True, False
        built(self)

    monkeypatch.setattr(GRPOConfig, "__post_init__", on_cpu)
    model = saved(tmp_path / "model", tiny_model("qwen3"))
    trainer = BuPOTrainer(model, reward, train_dataset=prompts())
    assert isinstance(trainer.args, BuPOConfig)
    assert trainer.args.output_dir == GRPOTrainer(model, reward, train_dataset=prompts()).args.output_dir == "model-GRPO"
    assert trainer.plan() == [("final policy (GRPO)", "throughout")]
    in_memory = BuPOTrainer(trainer.model, [reward], None, prompts(), None, trainer.processing_class)
    assert in_memory.args.output_dir == "model-GRPO"


def test_with_a_grpo_config_it_is_grpo_trainer_bit_for_bit(tmp_path: Path) -> None:
    ended = []
    for name, trainer_class in (("a", BuPOTrainer), ("b", GRPOTrainer)):
        args = GRPOConfig(output_dir=str(tmp_path / name), num_iterations=2, steps_per_generation=2, **SETTINGS)
        trainer = trainer_class(tiny_model("qwen3"), reward, args, prompts(), processing_class=tiny_tokenizer(None))
        trainer.train()
        assert trainer.args.generation_batch_size == args.generation_batch_size == 8
        ended.append(trainer)
    assert isinstance(ended[0].args, BuPOConfig)
    assert not ended[0].args.trains_internally
    for (name, a), b in zip(ended[0].model.named_parameters(), ended[1].model.parameters(), strict=True):
        assert torch.equal(a, b), name
    assert (ended[0].state.log_history[0].keys() ^ ended[1].state.log_history[0].keys()) == {"bupo/internal_layer"}


def test_without_a_token_signal_the_entropy_mask_is_trl_s_own() -> None:
    assert BuPOTrainer.get_high_entropy_mask is GRPOTrainer.get_high_entropy_mask


def test_other_arguments_are_refused_in_one_line() -> None:
    with pytest.raises(TrainingError, match="needs a BuPOConfig or TRL's GRPOConfig as args, got dict"):
        BuPOConfig.of(SETTINGS, tiny_model("qwen3"))


SIZES = {"vocab_size": 211, "n_embd": 32, "n_layer": 2, "n_head": 2, "n_positions": 64, "bos_token_id": 1, "eos_token_id": 2}


@pytest.mark.parametrize(
    "model", [OpenAIGPTLMHeadModel(OpenAIGPTConfig(**SIZES)), GPT2LMHeadModel(GPT2Config(**SIZES))], ids=["gpt1", "gpt2"]
)
def test_an_architecture_that_no_phase_needs_to_cut_is_trained(model: nn.Module, tmp_path: Path) -> None:
    before = [weight.clone() for weight in model.parameters()]
    trainer = BuPOTrainer(model, reward, GRPOConfig(str(tmp_path), **SETTINGS), prompts(), processing_class=tiny_tokenizer(None))
    trainer.train()
    assert any(not torch.equal(a, b) for a, b in zip(model.parameters(), before, strict=True))
    if model.config.model_type not in LAYOUTS:
        with pytest.raises(Exception, match="openai-gpt"):
            BuPOTrainer(
                model, reward, BuPOConfig(str(tmp_path), internal_layer=1, internal_rollouts=1, **SETTINGS), prompts(),
                processing_class=tiny_tokenizer(None),
            )  # fmt: skip


class Counter:
    """An environment that asks a question and rewards what it is told."""

    def reset(self, **columns: Any) -> str:
        self.told = 0
        return "w9"

    def add(self, number: int) -> str:
        """Adds a number.

        Args:
            number: the number.

        Returns:
            The sum.
        """
        self.told += number
        return str(self.told)

    def get_reward(self) -> float:
        return float(id(self) % 3)


@pytest.mark.parametrize("settings", [{}, {"internal_layer": 2, "internal_rollouts": 1}])
def test_an_environment_that_owns_its_prompts_and_rewards_is_enough(settings: dict[str, Any], tmp_path: Path) -> None:
    template = files("trl").joinpath("chat_templates/qwen3.jinja").read_text()
    args = BuPOConfig(str(tmp_path), **SETTINGS | {"max_steps": 1}, **settings)
    trainer = BuPOTrainer(
        tiny_model("qwen3", context=1024), args=args, environment_factory=Counter, processing_class=tiny_tokenizer(template)
    )
    trainer.train()
    assert trainer.reward_func_names == ["Counter"]
    assert trainer.state.global_step == 1


def test_an_iterable_data_set_is_taken(tmp_path: Path) -> None:
    stream = Dataset.from_list(list(prompts())).to_iterable_dataset()
    trainer = BuPOTrainer(
        tiny_model("qwen3"), reward, BuPOConfig(str(tmp_path), internal_layer=2, internal_rollouts=1, **SETTINGS), stream,
        processing_class=tiny_tokenizer(None),
    )  # fmt: skip
    trainer.train()
    assert [entry["bupo/internal_layer"] for entry in trainer.state.log_history if "reward" in entry] == [1]
