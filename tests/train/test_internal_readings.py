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
from tests.support.tiny_models import random_ids, tiny_model, tiny_tokenizer
from tests.support.training import prompts, reward
from tests.train.test_drop_in import SETTINGS

pytestmark = pytest.mark.filterwarnings("default")  # TRL's and accelerate's own


def settles(completions: list[str], internal: list[dict[str, Any]], **columns: Any) -> list[float]:
    """The mean settling depth of each answer."""
    return [float(reading["settling_depth"].mean()) for reading in internal]


@pytest.mark.parametrize("batch_size", [1, 3])
def test_readings_are_those_of_an_analysis(batch_size: int) -> None:
    model = tiny_model("llama").train()
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
