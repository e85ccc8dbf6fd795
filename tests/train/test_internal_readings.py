"""Rewards that ask what the layers say of their answers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from datasets import Dataset

import layerlens as ll
from layerlens.errors import TrainingError
from layerlens.rewards import load_reward
from layerlens.train import BuPOConfig, BuPOTrainer
from layerlens.train.internal_readings import asks_internal, internal_readings
from layerlens.train.layer_states import FinalReader
from tests.support.architectures import tiny_architecture
from tests.support.markdown import ROOT, code_blocks
from tests.support.tiny_models import random_ids, tiny_model, tiny_tokenizer
from tests.support.training import prompts, reward
from tests.train.test_drop_in import SETTINGS

pytestmark = pytest.mark.filterwarnings("default")  # TRL's and accelerate's own


def settles(completions: list[str], internal: list[dict[str, Any]], **columns: Any) -> list[float]:
    """The mean settling depth of each answer."""
    return [float(reading["settling_depth"].mean()) for reading in internal]


@pytest.mark.parametrize("batch_size", [1, 3])
@pytest.mark.parametrize("family", ["llama", "gpt2"])  # GPT-2 counts positions from the first column
def test_readings_are_those_of_an_analysis(family: str, batch_size: int) -> None:
    model = tiny_architecture(family).train()
    asked = [random_ids(3 + n, n) for n in range(3)]
    answers = [random_ids(5 - n, 10 + n) for n in range(3)]
    found = internal_readings(model, FinalReader(model, 1.0), 4, asked, answers, batch_size)
    assert model.training
    samples = [ll.Sample([*prompt, *answer], len(prompt)) for prompt, answer in zip(asked, answers, strict=True)]
    run = ll.analyze(
        ll.LensModel.wrap(model),
        samples,
        norm="final",
        sites="resid_post",
        metrics=("entropy", "kl_to_final", "js_to_final"),
        rows="response",
    )
    for index, (reading, answer) in enumerate(zip(found, answers, strict=True)):
        expected = run.sample(index)
        for name in ("entropy", "kl_to_final", "js_to_final"):
            assert reading[name].shape == (len(answer), 4)
            np.testing.assert_allclose(reading[name], expected[name].values[..., 0], atol=2e-6, rtol=1e-5)
        assert ((reading["settling_depth"] >= 1) & (reading["settling_depth"] <= 4)).all()


def test_a_reward_that_asks_gets_the_readings_of_its_answers_once_per_batch(tmp_path: Path) -> None:
    calls: list[list[dict[str, Any]]] = []

    def asks(completion_ids: list[list[int]], internal: list[dict[str, Any]], **columns: Any) -> list[float]:
        calls.append(internal)
        assert [len(reading["entropy"]) for reading in internal] == [len(ids) for ids in completion_ids]
        return settles([], internal)

    def asks_too(internal: list[dict[str, Any]], **columns: Any) -> list[float]:
        calls.append(internal)
        return [0.0] * len(internal)

    trainer = BuPOTrainer(
        tiny_model("qwen3"),
        [asks, reward, asks_too],
        BuPOConfig(str(tmp_path), **SETTINGS),
        prompts(),
        processing_class=tiny_tokenizer(None),
    )
    trainer.train()
    assert len(calls) == 2 * SETTINGS["max_steps"]
    assert all(a is b for a, b in zip(calls[0], calls[1], strict=True)), "one reading serves all rewards"


def test_a_reward_in_a_process_of_its_own_gets_them_too() -> None:
    isolated = load_reward(f"{__name__}:settles", workers=1)
    assert asks_internal(isolated)
    assert not asks_internal(reward)
    assert not asks_internal(load_reward("boxed"))
    readings = [{"settling_depth": np.array([1.0, 2.0])}, {"settling_depth": np.array([4.0])}]
    assert isolated(completions=["a", "b"], internal=readings) == [1.5, 4.0]
    isolated.close()


def test_a_column_of_that_name_is_refused(tmp_path: Path) -> None:
    columns = Dataset.from_list([{**row, "internal": 1} for row in prompts()])
    trainer = BuPOTrainer(
        tiny_model("qwen3"), settles, BuPOConfig(str(tmp_path), **SETTINGS), columns, processing_class=tiny_tokenizer(None)
    )
    with pytest.raises(TrainingError, match="the data set has a column of that name"):
        trainer.train()


def test_readings_follow_the_tokens_that_a_rollout_function_asked_with(tmp_path: Path) -> None:
    """Not those of the data set's prompts, which it may have extended."""
    model, got = tiny_model("qwen3"), []

    def rollout(asked: list[str], trainer: BuPOTrainer) -> dict[str, Any]:
        ids = [[9, 10, 11, *tokens] for tokens in trainer.processing_class(text=asked)["input_ids"]]
        return {"prompt_ids": ids, "completion_ids": [[20, 21]] * len(ids), "logprobs": None}

    def asks(prompts: list[str], internal: list[dict[str, Any]], **columns: Any) -> list[float]:
        got.append((prompts[0], internal[0]["entropy"]))
        return [float(number % 3) for number in range(len(internal))]

    args = BuPOConfig(str(tmp_path), **SETTINGS | {"max_steps": 1, "learning_rate": 0.0})
    BuPOTrainer(model, asks, args, prompts(), processing_class=tiny_tokenizer(None), rollout_func=rollout).train()
    [(asked, entropies)] = got
    tokens = [9, 10, 11, *tiny_tokenizer(None)(text=[asked])["input_ids"][0]]
    [expected] = internal_readings(model, FinalReader(model, 1.0), 4, [tokens], [[20, 21]], 1)
    np.testing.assert_allclose(entropies, expected["entropy"], atol=1e-5)


def test_the_reward_of_the_documentation_scores_messages_and_texts() -> None:
    [code] = [code for code in code_blocks((ROOT / "docs" / "training.md").read_text(), "python") if "deep_and_right" in code]
    names: dict[str, Any] = {}
    exec(code, names)
    reading = {"settling_depth": np.array([2.0, 4.0]), "entropy": np.zeros((2, 6))}
    for answers in (["it is 4", "it is 5"], [[{"role": "assistant", "content": f"it is {n}"}] for n in (4, 5)]):
        assert names["deep_and_right"](answers, ["4", "4"], [reading] * 2) == [pytest.approx(1.05), 0]
