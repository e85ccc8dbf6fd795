"""Responses before measurements: kept, never sampled twice, in groups that are part of what continues."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest import mock

import pytest

import layerlens as ll
from layerlens.analysis import batches, sampling
from layerlens.errors import PromptError, RunError
from layerlens.models import generate_responses
from layerlens.storage.texts import TextFolder
from tests.support.kills import assert_same_run, fill, finish, start_worker
from tests.support.tiny_models import random_ids

PROMPTS = [ll.Sample(random_ids(4 + i % 3, i), 4 + i % 3, id=f"p{i}") for i in range(5)]
OPTIONS: dict[str, Any] = {"generate": ll.Generation(6, seed=3), "metrics": "entropy", "sites": "resid_post", "layers": 1}


@pytest.fixture
def sampled(monkeypatch: pytest.MonkeyPatch) -> list[list[int]]:
    """The numbers of the prompts that are sampled together, one list for each time."""
    groups: list[list[int]] = []

    def counted(model: Any, samples: Any, generation: Any, numbers: Sequence[int], *more: Any) -> Any:
        groups.append(list(numbers))
        return generate_responses(model, samples, generation, numbers, *more)

    monkeypatch.setattr(sampling, "generate_responses", counted)
    return groups


def test_texts_are_kept_before_anything_is_measured(
    qwen: ll.LensModel, tmp_path: Path, sampled: list[list[int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("layerlens.analysis.batches.measure_batch", None)
    with pytest.raises(TypeError):
        ll.analyze(qwen, PROMPTS, **OPTIONS, sampling_batch=2, out=tmp_path / "run")
    assert sampled == [[0, 1], [2, 3], [4]]
    monkeypatch.undo()
    assert [sorted(TextFolder(tmp_path / "run" / "texts").read(group)) for group in range(3)] == sampled
    run = ll.analyze(qwen, PROMPTS, **OPTIONS, out=tmp_path / "run")
    whole = ll.analyze(qwen, PROMPTS, **OPTIONS, sampling_batch=2)
    assert run.data.identical(whole.data)
    source = run.manifest.texts
    assert source is not None
    assert (source.engine, source.batch, source.run, source.model) == ("transformers", 2, None, qwen.name)
    assert ll.open_run(tmp_path / "run").manifest == run.manifest


def test_a_sampling_batch_is_part_of_what_continues(qwen: ll.LensModel, tmp_path: Path, sampled: list[list[int]]) -> None:
    ll.analyze(qwen, PROMPTS, **OPTIONS, sampling_batch=2, out=tmp_path / "run")
    (tmp_path / "run" / "texts" / "000001.json").unlink()
    (tmp_path / "run" / "samples" / "000003.nc").unlink()
    del sampled[:]
    ll.analyze(qwen, PROMPTS, **OPTIONS, out=tmp_path / "run")
    assert sampled == [[2, 3]], "the group of before, whatever fits the memory now"
    with pytest.raises(RunError, match=r"config.batch is 2 there and 3 now"):
        ll.analyze(qwen, PROMPTS, **OPTIONS, sampling_batch=3, out=tmp_path / "run")
    with pytest.raises(PromptError, match="sampling_batch must be 1 or more, got 0"):
        ll.analyze(qwen, PROMPTS, **OPTIONS, sampling_batch=0)


def test_a_measured_run_without_kept_texts_samples_nothing(qwen: ll.LensModel, tmp_path: Path, sampled: list[list[int]]) -> None:
    """As an earlier version leaves its folders."""
    run = ll.analyze(qwen, PROMPTS, **OPTIONS, out=tmp_path / "run")
    for file in (tmp_path / "run" / "texts").glob("0*.json"):
        file.unlink()
    del sampled[:]
    again = ll.analyze(qwen, PROMPTS, **OPTIONS, out=tmp_path / "run")
    assert sampled == []
    assert again.data.identical(run.data)


@pytest.mark.parametrize("damage", ["digest", "json", "prompt"])
def test_damaged_texts_are_named(damage: str, qwen: ll.LensModel, tmp_path: Path) -> None:
    ll.analyze(qwen, PROMPTS, **OPTIONS, sampling_batch=2, out=tmp_path / "run")
    file = tmp_path / "run" / "texts" / "000001.json"
    found = json.loads(file.read_text())
    if damage == "digest":
        found["texts"]["2"][-1] += 1
    file.write_text("{" if damage == "json" else json.dumps(found))
    if damage == "prompt":
        TextFolder(file.parent).write(1, {2: [1, 2, 3], 3: [4]})
    with pytest.raises(RunError, match=r"000001.json is damaged|does not begin with its prompt"):
        ll.analyze(qwen, PROMPTS, **OPTIONS, out=tmp_path / "run")


def test_measuring_batches_hold_as_many_texts_as_are_really_long(qwen: ll.LensModel, monkeypatch: pytest.MonkeyPatch) -> None:
    """A long `max_new_tokens` that no response needs makes no batch smaller."""
    sizes: list[int] = []
    measure = batches.measure_batch

    def counted(model: Any, ids: Any, *more: Any) -> Any:
        sizes.append(len(ids))
        return measure(model, ids, *more)

    monkeypatch.setattr(batches, "measure_batch", counted)
    answered = [replace(prompt, token_ids=(*prompt.token_ids, 2)) for prompt in PROMPTS]
    ll.analyze(qwen, answered, **{**OPTIONS, "generate": ll.Generation(100)}, batch_tokens=7 * 5)
    assert sizes == [5]


def fill_counting(lens: ll.LensModel, out: Path) -> None:
    """Notes beside the folder which samples it gives responses."""

    def counted(model: Any, samples: Any, generation: Any, numbers: Any, *more: Any) -> Any:
        with Path(f"{out}.sampled").open("a") as log:
            log.write(" ".join(map(str, numbers)) + " ")
        return generate_responses(model, samples, generation, numbers, *more)

    with mock.patch.object(sampling, "generate_responses", counted):
        fill(lens, out, sampling_batch=4)


def test_a_kill_while_measuring_samples_no_text_twice(tmp_path: Path) -> None:
    finish(start_worker(tmp_path / "whole", fill_counting))
    for done in (1, 5, 9):
        worker = start_worker(tmp_path / "killed", fill_counting)
        while worker.is_alive() and len(list((tmp_path / "killed" / "samples").glob("*.nc"))) < done:
            time.sleep(0.005)
        worker.kill()
        worker.join(timeout=60)
    finish(start_worker(tmp_path / "killed", fill_counting))
    numbers = [int(number) for number in (tmp_path / "killed.sampled").read_text().split()]
    assert sorted(numbers) == list(range(16)), "each text once"
    assert_same_run(tmp_path / "killed", tmp_path / "whole")
