"""Answers of internal policies are drawn from those policies; vLLM is asked the right things."""

from __future__ import annotations

import sys
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch

import layerlens as ll
from layerlens.errors import LayerLensError, ModelLoadError, PromptError, SelectionError
from layerlens.evaluate import LensEngine, VLLMEngine, evaluate, open_engine
from layerlens.models import response_seed
from tests.support.evaluations import even_words, some_problems
from tests.support.tiny_models import tiny_tokenizer

GREEDY = ll.Generation(max_new_tokens=5, temperature=0.0)


def test_the_last_layer_with_the_final_norm_is_the_model(lens: ll.LensModel) -> None:
    sampled = ll.Generation(max_new_tokens=6, temperature=0.8, top_p=0.9, seed=1)
    problems, numbers = some_problems(4), [0, 1, 2, 3]
    for generation in (GREEDY, sampled):
        whole = LensEngine(lens).answer(problems, generation, numbers)
        assert LensEngine(lens, layer=lens.n_layers, norm="final").answer(problems, generation, numbers) == whole
        assert LensEngine(lens, layer=2).answer(problems, generation, numbers) != whole


@pytest.mark.parametrize(("layer", "norm"), [(1, "none"), (3, "final"), (4, "none")])
def test_greedy_answers_are_the_policys(lens: ll.LensModel, layer: int, norm: Any) -> None:
    problems = some_problems(4)
    expected = [lens.policy(layer, norm=norm).sample(problem.token_ids, 1, 5, temperature=0.0)[0] for problem in problems]
    assert LensEngine(lens, layer=layer, norm=norm).answer(problems, GREEDY, [0, 1, 2, 3]) == expected


def test_samples_follow_the_policys_distribution(qwen: ll.LensModel) -> None:
    [problem], count = some_problems(1), 3000
    drawn = LensEngine(qwen, layer=2).answer([problem] * count, ll.Generation(1), range(count))
    shares = torch.bincount(torch.tensor(drawn)[:, 0], minlength=qwen.parts.unembedding.shape[0]) / count
    top = qwen.policy(2).top(problem.token_ids, len(shares))
    probs = torch.zeros_like(shares)
    probs[top["token_id"].tolist()] = torch.tensor(top["prob"].to_numpy(), dtype=probs.dtype)
    assert ((shares - probs).abs() <= 4 * (probs * (1 - probs) / count).sqrt() + 2 / count).all()


def test_other_sites_answer_from_their_policy(qwen: ll.LensModel) -> None:
    problems, generation = some_problems(2), ll.Generation(4, seed=5)
    policy = qwen.policy(3, "ffn_out", "final")
    expected = [policy.sample(problem.token_ids, 1, 4, seed=response_seed(5, number))[0] for problem, number in zip(problems, [7, 9])]  # noqa: B905
    assert LensEngine(qwen, 3, "ffn_out", "final").answer(problems, generation, [7, 9]) == expected


def test_the_model_is_whole_again_afterwards(qwen: ll.LensModel) -> None:
    before = qwen.parts.model(torch.tensor([[5, 6, 7]])).logits
    with pytest.raises(PromptError):
        LensEngine(qwen, layer=2).answer(some_problems(1), ll.Generation(10_000), [0])
    LensEngine(qwen, layer=2).answer(some_problems(1), GREEDY, [0])
    assert qwen.parts.decoder.layers is qwen.parts.blocks
    assert not qwen.parts.final_norm._forward_hooks
    assert torch.equal(qwen.parts.model(torch.tensor([[5, 6, 7]])).logits, before)


def test_an_internal_evaluation_says_so(qwen: ll.LensModel) -> None:
    found = evaluate(qwen, some_problems(2), 2, reward=even_words, generation=GREEDY, layer=2, norm="final")
    assert found.label == "tiny-random layer 2 (norm: final)"
    assert found.summary()["layer"] == 2
    assert evaluate(qwen, some_problems(2), 2, reward=even_words, generation=GREEDY).summary()["norm"] is None


def test_unknown_places_are_refused(qwen: ll.LensModel) -> None:
    with pytest.raises(SelectionError, match=r"1\.\.4"):
        LensEngine(qwen, layer=9)
    with pytest.raises(SelectionError, match="an engine is opened with its layer"):
        evaluate(LensEngine(qwen), some_problems(1), 1, reward=even_words, layer=2)


def test_vllm_is_asked_for_and_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "vllm", None)
    with pytest.raises(LayerLensError, match="vllm is not installed"):
        open_engine("tiny-qwen3", "vllm")
    with pytest.raises(SelectionError, match="internal layer"):
        open_engine("tiny-qwen3", "vllm", layer=2)
    with pytest.raises(SelectionError, match="takes GPUs by itself"):
        open_engine("tiny-qwen3", "vllm", device="cpu")
    with pytest.raises(SelectionError, match="tensor_parallel is vLLM's"):
        open_engine("tiny-qwen3", "transformers", tensor_parallel=2)


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


def test_vllm_answers_with_a_stream_each(monkeypatch: pytest.MonkeyPatch) -> None:
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
