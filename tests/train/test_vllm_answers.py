"""Answers by the trainer's vLLM: TRL's own VLLMGeneration around a stand-in for vLLM, which holds TRL to its protocol."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from trl.generation import vllm_generation

from layerlens.errors import LayerLensError
from layerlens.prompts.sample import Sample
from layerlens.results import open_run
from layerlens.results.training_log import open_training
from layerlens.train import BuPOTrainer, layer_choice
from layerlens.train.vllm_answers import vllm_answers
from tests.support.tiny_models import tiny_model
from tests.support.training import make_trainer

pytestmark = pytest.mark.filterwarnings("default")  # TRL's and accelerate's own


class StandIn:
    """What TRL asks of vllm.LLM. It answers greedily, with weights that are gone while it sleeps; awake only while it is needed."""

    def __init__(self, model: str, enable_sleep_mode: bool, **options: Any):
        self.network, self.awake, self.asked = tiny_model("qwen3"), {"weights", "kv_cache"}, []
        self.weights = dict(self.network.named_parameters())
        runner = SimpleNamespace(model=self)
        executor = SimpleNamespace(driver_worker=SimpleNamespace(model_runner=runner))
        self.llm_engine = SimpleNamespace(model_executor=executor, model_config=SimpleNamespace(max_model_len=512))
        self.trained: torch.nn.Module | None = None
        standing.append(self)

    def load_weights(self, named: list[tuple[str, torch.Tensor]]) -> None:
        assert "weights" in self.awake
        for name, weight in named:
            self.weights[name].data.copy_(weight)

    def sleep(self, level: int) -> None:
        assert level == 2
        self.awake.clear()
        for weight in self.weights.values():
            weight.data.fill_(torch.nan)

    def wake_up(self, tags: list[str]) -> None:
        self.awake.update(tags)

    def reset_prefix_cache(self) -> None: ...

    @torch.no_grad()
    def generate(self, prompts: list[dict[str, list[int]]], sampling_params: Any, use_tqdm: bool) -> list[Any]:
        assert self.awake == {"weights", "kv_cache"}
        if self.trained is not None:
            for name, weight in self.trained.named_parameters():
                assert torch.equal(self.weights[name], weight), f"{name} is not as it is in training"
        self.asked.append([tuple(prompt["prompt_token_ids"]) for prompt in prompts])
        return [self._answer(prompt["prompt_token_ids"], sampling_params.max_tokens) for prompt in prompts]

    def _answer(self, prompt: list[int], new: int) -> Any:
        ids = list(prompt)
        for _ in range(new):
            ids.append(int(self.network(input_ids=torch.tensor([ids])).logits[0, -1].argmax()))
        answer = ids[len(prompt) :]
        logprobs = [{token: SimpleNamespace(rank=1, logprob=-0.1)} for token in answer]
        return SimpleNamespace(prompt_token_ids=prompt, outputs=[SimpleNamespace(token_ids=answer, logprobs=logprobs)])


standing: list[StandIn] = []


@pytest.fixture(autouse=True)
def vllm_is_here(monkeypatch: pytest.MonkeyPatch) -> None:
    """vLLM as TRL finds it, and no way past it: whoever samples through transformers fails."""
    standing.clear()
    monkeypatch.setattr(vllm_generation, "is_vllm_available", lambda: True)
    monkeypatch.setattr(vllm_generation, "LLM", StandIn, raising=False)
    monkeypatch.setattr(vllm_generation, "SamplingParams", SimpleNamespace, raising=False)
    for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"):  # TRL sets these
        monkeypatch.setenv(name, "0")
        monkeypatch.delenv(name)

    def through_transformers(*args: Any) -> None:
        raise LayerLensError("sampled through transformers")

    monkeypatch.setattr("layerlens.train.monitor.generate_responses", through_transformers)
    monkeypatch.setattr("layerlens.analysis.sampling.generate_responses", through_transformers)


def trainer_with_vllm(out: Path, sleeps: bool = True, **settings: Any) -> BuPOTrainer:
    return make_trainer(out, use_vllm=True, vllm_enable_sleep_mode=sleeps, internal_rollouts=1, **settings)


@pytest.mark.parametrize("sleeps", [True, False])
def test_auto_chooses_on_answers_of_the_trainers_vllm(sleeps: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Any] = []
    analyze = layer_choice.analyze

    def watch(model: Any, samples: Any, **options: Any) -> Any:
        seen.extend(samples)
        return analyze(model, samples, **options)

    monkeypatch.setattr(layer_choice, "analyze", watch)
    trainer = trainer_with_vllm(tmp_path, sleeps, internal_layer="auto", internal_rule="entropy_drop", internal_samples=3)
    [engine] = standing
    assert engine.awake == (set() if sleeps else {"weights", "kv_cache"})
    assert [len(asked) for asked in engine.asked] == [3]
    assert trainer.schedule.phases == ((trainer.choice.layer, 1),)
    assert [sample.token_ids[: sample.response_start] for sample in seen] == engine.asked[0]
    model = tiny_model("qwen3")
    for sample in seen:
        ids = torch.tensor([sample.token_ids])
        own = model(input_ids=ids).logits[0].argmax(-1)
        assert sample.token_ids[sample.response_start :] == tuple(own[sample.response_start - 1 : -1].tolist())


def test_weights_that_fsdp_has_not_sharded_yet_are_taken_as_they_are(tmp_path: Path) -> None:
    vllm = trainer_with_vllm(tmp_path, internal_layer=2).vllm_generation
    vllm._dist.fsdp_version = 2
    with pytest.raises(AttributeError, match="full_tensor"):
        vllm.sync_weights()
    [answered] = vllm_answers(vllm, [Sample([8, 9, 10], 3)])
    assert len(answered.token_ids) == 3 + 6
    assert vllm._dist.fsdp_version == 2
    assert not standing[0].awake


class Server:
    """What TRL asks of the client of a vLLM server, which receives each weight in the dtype that it was told."""

    def update_named_params(self, told: list[tuple[str, str, list[int]]], sent: Iterator[tuple[str, torch.Tensor]]) -> None:
        for (name, dtype, shape), (sent_name, weight) in zip(told, sent, strict=True):
            assert (name, getattr(torch, dtype), shape) == (sent_name, weight.dtype, list(weight.shape))

    def generate(self, prompts: list[list[int]], **options: Any) -> dict[str, Any]:
        return {"prompt_ids": prompts, "completion_ids": [[8]] * len(prompts), "logprobs": None}

    def reset_prefix_cache(self) -> None: ...


def test_a_server_is_told_anew_of_weights_that_sharding_made_float32(tmp_path: Path) -> None:
    vllm = trainer_with_vllm(tmp_path, sleeps=False, internal_layer=2, model=tiny_model("qwen3").to(torch.bfloat16)).vllm_generation
    vllm.mode, vllm.vllm_client = "server", Server()
    [answered] = vllm_answers(vllm, [Sample([8, 9, 10], 3)])
    assert answered.token_ids == (8, 9, 10, 8)
    vllm.model.to(torch.float32)
    vllm.sync_weights()


def test_the_monitor_samples_with_the_weights_of_its_step(tmp_path: Path) -> None:
    settings = {"monitor_every": 1, "monitor_problems": 3, "monitor_repeats": 2, "max_steps": 2}
    trainer = trainer_with_vllm(tmp_path, internal_layer=2, **settings)
    [engine] = standing
    engine.trained = trainer.model
    trainer.train()
    assert not engine.awake
    texts = json.loads((tmp_path / "monitor" / "probe.json").read_text())
    prompts = engine.asked[0][:3]
    assert [tuple(text[: len(prompt)]) for text, prompt in zip(texts, prompts, strict=True)] == prompts
    ours = [asked for asked in engine.asked if asked[:3] == prompts]
    assert [len(asked) for asked in ours] == [9, 6, 6], "probe and fresh answers before training, fresh ones after each step"
    assert len(engine.asked) == len(ours) + 2, "beside those of two rollouts"
    monitor = open_training(tmp_path).monitor
    assert monitor["step"].tolist() == [0, 1, 2]
    assert (monitor["response_length"] == 6).all()
    assert (monitor["stability/answers"] == 0).all(), "nothing stands in a box"
    run = open_run(tmp_path / "monitor" / "step-000000")
    assert [tuple(run.sample(index)["text_token_id"].values.tolist()) for index in range(3)] == [tuple(text) for text in texts]


def test_a_resumed_run_asks_vllm_for_no_probe_texts_again(tmp_path: Path) -> None:
    settings = {"internal_layer": 2, "monitor_every": 1, "monitor_problems": 2, "monitor_repeats": 1}
    settings |= {"save_strategy": "steps", "save_steps": 1}
    trainer_with_vllm(tmp_path, max_steps=1, **settings).train()
    trainer_with_vllm(tmp_path, max_steps=2, **settings).train(resume_from_checkpoint=True)
    first, second = standing
    prompts = first.asked[0][:2]
    assert [len(asked) for asked in first.asked if asked[:2] == prompts] == [4, 2]
    assert [len(asked) for asked in second.asked if asked[:2] == prompts] == [2]
