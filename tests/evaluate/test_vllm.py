"""VLLMEngine, against a stand-in for vLLM that keeps what it is asked."""

from __future__ import annotations

import sys
from contextlib import suppress
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

import layerlens as ll
from layerlens.cli import main
from layerlens.errors import LayerLensError, ModelLoadError, PromptError, SelectionError
from layerlens.evaluate import VLLMEngine, evaluate, open_engine, sample_with_vllm
from tests.support.evaluations import even_words, some_problems
from tests.support.tiny_models import tiny_model, tiny_tokenizer


class FakeVLLM(ModuleType):
    """Answers each prompt with its last token and the end token; keeps what it was asked."""

    def __init__(self) -> None:
        super().__init__("vllm")
        self.settings: list[dict[str, Any]] = []
        self.opened = self.closed = 0
        self.context = 64
        self.ends: Any = [2]
        fake = self

        class LLM:
            def __init__(self, model: str, **options: Any):
                if model == "missing":
                    raise ValueError("no such\nmodel")
                config = SimpleNamespace(
                    max_model_len=fake.context, try_get_generation_config=lambda: {"eos_token_id": fake.ends}, get_vocab_size=lambda: 211
                )
                self.llm_engine = SimpleNamespace(model_config=config, engine_core=SimpleNamespace(shutdown=self._shut_down))
                fake.opened += 1
                fake.options = {"model": model} | options

            def _shut_down(self) -> None:
                fake.closed += 1

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


@pytest.mark.parametrize(("ends", "expected"), [(0, (0,)), ([2, 5], (2, 5)), (None, (tiny_tokenizer().eos_token_id,))])
def test_vllm_engine_ends_at_the_tokens_that_the_settings_name(ends: Any, expected: object, monkeypatch: pytest.MonkeyPatch) -> None:
    fake = FakeVLLM()
    fake.ends = ends
    monkeypatch.setitem(sys.modules, "vllm", fake)
    assert open_engine("tiny-qwen3", "vllm").end_tokens == expected


@pytest.mark.parametrize("ends", [211, [2, -1], "2"])
def test_vllm_engine_refuses_end_tokens_outside_the_vocabulary(ends: object, monkeypatch: pytest.MonkeyPatch) -> None:
    fake = FakeVLLM()
    fake.ends = ends
    monkeypatch.setitem(sys.modules, "vllm", fake)
    with pytest.raises(ModelLoadError, match="eos_token_id must be ids from 0 to 210"):
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


def test_vllm_samples_texts_is_closed_and_starts_no_second_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake = FakeVLLM()
    monkeypatch.setitem(sys.modules, "vllm", fake)
    tiny_model().save_pretrained(tmp_path / "model")
    tiny_tokenizer().save_pretrained(tmp_path / "model")
    prompts = [*some_problems(3), ll.Sample([3, 4, 5], 2, id="answered")]

    def texts(**options: Any) -> Any:
        return sample_with_vllm(tmp_path / "model", lambda tokenizer: prompts, ll.Generation(7, 0.6), tmp_path / "run", **options)

    found = texts(batch=2, tensor_parallel=2)
    assert (len(fake.settings), fake.opened, fake.closed, fake.options["tensor_parallel_size"]) == (3, 1, 1, 2)
    assert [sample.token_ids for sample in found] == [
        *((*prompt.token_ids, prompt.token_ids[-1], 2) for prompt in prompts[:3]), prompts[3].token_ids
    ]  # fmt: skip
    assert texts().samples == found.samples
    assert (len(fake.settings), fake.opened, fake.closed) == (3, 1, 1), "all texts are there"
    (tmp_path / "run" / "texts" / "000001.json").unlink()
    assert texts().samples == found.samples
    assert (len(fake.settings), fake.opened, fake.closed) == (4, 2, 2), "the group that is missing"
    run = ll.analyze(ll.load(tmp_path / "model"), found, generate=ll.Generation(7, 0.6), metrics="entropy", out=tmp_path / "run")
    source = run.manifest.texts
    assert source is not None
    assert (source.engine, source.model, source.batch) == ("vllm", "model", 2)
    assert run.manifest.config.generate == source.generate
    (tmp_path / "run" / "texts" / "000001.json").unlink()
    with pytest.raises(SelectionError, match="vLLM takes GPUs by itself"):
        texts(device="cuda:1")
    with pytest.raises(PromptError, match="context of model"):
        sample_with_vllm(tmp_path / "model", lambda tokenizer: prompts, ll.Generation(100), tmp_path / "other")
    assert fake.opened == fake.closed == 3, "closed after an error too"


def test_analyze_takes_vllm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    fake = FakeVLLM()
    monkeypatch.setitem(sys.modules, "vllm", fake)
    words = ["analyze", "tiny-qwen3", "arithmetic", "--limit", "2", "--max-new-tokens", "5", "--engine", "vllm", "--metrics", "entropy"]
    monkeypatch.setattr(sys, "argv", ["layerlens", *words, "--out", str(tmp_path / "run")])
    monkeypatch.setattr(fake, "context", 1024)
    with suppress(SystemExit):
        main()
    assert capsys.readouterr().err == ""
    run = ll.open_run(tmp_path / "run")
    assert run.complete
    assert fake.opened == fake.closed == 1
    assert run.manifest.texts is not None
    assert run.manifest.texts.engine == "vllm"
    assert (run.data["text_token_id"].values[run.data["text_sample"].values == 0][-1]) == 2
