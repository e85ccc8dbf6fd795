"""VLLMEngine, against a stand-in for vLLM that keeps what it is asked."""

from __future__ import annotations

import sys
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

import layerlens as ll
from layerlens.errors import LayerLensError, ModelLoadError, PromptError
from layerlens.evaluate import VLLMEngine, evaluate, open_engine
from tests.support.evaluations import even_words, some_problems
from tests.support.tiny_models import tiny_tokenizer


class FakeVLLM(ModuleType):
    """Answers each prompt with its last token and the end token; keeps what it was asked."""

    def __init__(self) -> None:
        super().__init__("vllm")
        self.settings: list[dict[str, Any]] = []
        fake = self

        class LLM:
            def __init__(self, model: str, **options: Any):
                if model == "missing":
                    raise ValueError("no such\nmodel")
                config = SimpleNamespace(max_model_len=64, try_get_generation_config=lambda: {"eos_token_id": [2]})
                self.llm_engine = SimpleNamespace(model_config=config)
                fake.options = {"model": model} | options

            def get_tokenizer(self) -> Any:
                return tiny_tokenizer()

            def generate(self, prompts: list[dict[str, list[int]]], settings: list[dict[str, Any]], use_tqdm: bool) -> list[Any]:
                fake.settings += settings
                answers = [SimpleNamespace(token_ids=(prompt["prompt_token_ids"][-1], 2)) for prompt in prompts]
                return [SimpleNamespace(outputs=[answer]) for answer in answers]

        self.LLM, self.SamplingParams = LLM, lambda **settings: settings


def test_open_engine_tells_that_vllm_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "vllm", None)
    with pytest.raises(LayerLensError, match="vllm is not installed"):
        open_engine("tiny-qwen3", "vllm")


def test_vllm_engine_asks_for_a_seed_per_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    fake = FakeVLLM()
    monkeypatch.setitem(sys.modules, "vllm", fake)
    engine = open_engine("some/model", "vllm", dtype="bfloat16", tensor_parallel=2)
    assert isinstance(engine, VLLMEngine)
    assert fake.options["tensor_parallel_size"] == 2
    found = evaluate(engine, some_problems(3), 4, reward=even_words, generation=ll.Generation(7, 0.6, 0.9))
    assert found.problems[0].answers[0].text == tiny_tokenizer().decode([some_problems()[0].token_ids[-1]])
    assert all(answer.finished and answer.tokens == 2 for problem in found.problems for answer in problem.answers)
    assert len({settings["seed"] for settings in fake.settings}) == 12
    assert fake.settings[0] | {"seed": 0} == {
        "max_tokens": 7, "temperature": 0.6, "top_p": 0.9, "seed": 0, "stop_token_ids": [2], "detokenize": False,
    }  # fmt: skip
    assert found.summary()["engine"] == "vllm"
    with pytest.raises(PromptError, match="context of some/model"):
        evaluate(engine, some_problems(1), 1, reward=even_words, generation=ll.Generation(100))
    with pytest.raises(ModelLoadError, match="no such model"):
        open_engine("missing", "vllm")
