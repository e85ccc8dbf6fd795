"""However little memory states may take, a text runs through the model twice at most, and its numbers are the same."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
import xarray as xr

import layerlens as ll
from layerlens.analysis import measure, pipeline, row_decoder, state_memory
from layerlens.analysis.text_batch import TextBatch, portions
from layerlens.decode import interface
from layerlens.types import NORMS
from tests.support.tiny_models import random_ids, tiny_model

SAMPLES = [ll.Sample(random_ids(n, n), n // 3) for n in (5, 30, 8, 19)]
ROW = 32 * 4
"""Bytes of a state of the tiny models."""


@pytest.fixture
def passes(qwen: ll.LensModel) -> Iterator[list[int]]:
    """The number of texts in each forward pass."""
    seen: list[int] = []
    handle = qwen.parts.decoder.register_forward_pre_hook(lambda _, args, kwargs: seen.append(len(kwargs["input_ids"])), with_kwargs=True)
    yield seen
    handle.remove()


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> dict[str, int]:
    """Rows that went through the vocabulary: of states, and of anchors beside them."""
    rows = {"states": 0, "anchors": 0}
    choose = interface.choose_backend

    def counting(request: interface.ReadoutRequest, backend: str) -> Callable[..., object]:
        rows["states"] += len(request.hidden)
        rows["anchors"] += request.total_rows - len(request.hidden)
        return choose(request, backend)

    monkeypatch.setattr(interface, "choose_backend", counting)
    return rows


def limit(monkeypatch: pytest.MonkeyPatch, states: int) -> None:
    """Lets states of that many bytes wait."""
    monkeypatch.setattr(pipeline, "resolve_state_bytes", lambda device: states)


def assert_close(a: xr.Dataset, b: xr.Dataset) -> None:
    assert a.data_vars.keys() == b.data_vars.keys()
    for name in a.data_vars:
        np.testing.assert_allclose(a[name].astype(float), b[name].astype(float), atol=2e-5, err_msg=str(name))


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("states", [1, 30 * ROW * 7, 1 << 30], ids=["one at a time", "groups of seven", "all"])
def test_no_text_runs_more_than_twice_and_memory_changes_no_number(
    qwen: ll.LensModel, passes: list[int], monkeypatch: pytest.MonkeyPatch, norm: str, states: int
) -> None:
    ask = {"metrics": ("all", "js_to_final", "kl_from_final"), "kl_from_layer": 2, "top_k": 3, "spread": 1.5 if norm == "matched" else None}
    expected = ll.analyze(qwen, SAMPLES, norm=norm, **ask)
    passes.clear()
    limit(monkeypatch, states)
    run = ll.analyze(qwen, SAMPLES, norm=norm, **ask)
    assert sum(passes) == (4 if states == 1 << 30 else 8 if states == 1 else sum(passes))
    assert len(SAMPLES) <= sum(passes) <= 2 * len(SAMPLES)
    assert_close(run.data, expected.data)


PARTS: list[dict[str, object]] = [
    {"metrics": "similarity"},
    {"metrics": ["state_norm", "stream_cosine"]},
    {"tokens_per_sample": 3},
    {"similarity_rows": "all", "rows": "response"},
    {"sites": ["ffn_in", "resid_pre"], "layers": [2, 4]},
    {"metrics": ["entropy"], "layers": 2, "similarity_rows": "all"},
]


@pytest.mark.parametrize("ask", PARTS)
def test_parts_of_a_plan_are_measured_alike_with_little_memory(
    qwen: ll.LensModel, passes: list[int], monkeypatch: pytest.MonkeyPatch, ask: dict[str, object]
) -> None:
    expected = ll.analyze(qwen, SAMPLES, **ask)
    assert sum(passes) == len(SAMPLES)
    limit(monkeypatch, 1)
    run = ll.analyze(qwen, SAMPLES, **ask)
    assert sum(passes) <= 3 * len(SAMPLES)
    assert_close(run.data, expected.data)


@pytest.mark.parametrize("block", [1, 64 << 20])
def test_the_final_policy_is_decoded_once_for_each_row(
    qwen: ll.LensModel, counted: dict[str, int], monkeypatch: pytest.MonkeyPatch, block: int
) -> None:
    monkeypatch.setattr(row_decoder, "BLOCK_BYTES", {"cpu": block})
    run = ll.analyze(qwen, SAMPLES, batch_tokens=1 << 20)
    rows = sum(len(sample.token_ids) for sample in SAMPLES)
    assert counted == {"states": rows * (6 * qwen.n_layers + 1), "anchors": rows}, "resid_pre is decoded in the first layer alone"
    assert "final_logp_next" in run.data


def test_states_wait_in_the_models_own_dtype(passes: list[int], counted: dict[str, int], monkeypatch: pytest.MonkeyPatch) -> None:
    """Half of the bytes that float32 would take are enough to run once and decode every anchor once."""
    model = ll.LensModel.wrap(tiny_model("qwen3").bfloat16())
    text = ll.Sample(random_ids(30), 0)
    states = 6 * model.n_layers + 1
    limit(monkeypatch, 30 * states * ROW // 2)
    ll.analyze(model, [text])
    assert counted["anchors"] == 30
    counted["anchors"] = 0
    limit(monkeypatch, 30 * states * ROW // 2 - 1)
    ll.analyze(model, [text])
    assert counted["anchors"] == 60, "one byte less makes two groups"


def test_texts_run_together_as_far_as_their_states_fit(qwen: ll.LensModel, passes: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    states = 6 * qwen.n_layers + 1
    monkeypatch.setattr(measure, "PORTION_BYTES", {"cpu": states * ROW * 36})
    ll.analyze(qwen, SAMPLES)
    assert passes == [2, 2]


def test_portions_are_consecutive_and_bounded() -> None:
    assert list(portions([3, 3, 9, 1, 1, 1], 6)) == [slice(0, 2), slice(2, 3), slice(3, 6)]
    assert list(portions([5], 1)) == [slice(0, 1)]


def test_rows_of_one_batch_are_found_among_those_of_another() -> None:
    ids = [torch.arange(6), torch.arange(4)]
    every = TextBatch(ids, [torch.arange(6), torch.arange(4)], ["a", "b"])
    some = TextBatch(ids, [torch.tensor([1, 5]), torch.tensor([0])], ["a", "b"])
    found = some.numbers_in(every)
    assert found is not None
    assert found.tolist() == [1, 5, 6]
    assert every.numbers_in(some) is None


def test_a_run_continues_with_the_memory_that_it_was_begun_with(
    qwen: ll.LensModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, counted: dict[str, int]
) -> None:
    """Which states are decoded together can change last bits: it is decided once, and stands in run.json."""
    limit(monkeypatch, 30 * ROW * 10)
    whole = ll.analyze(qwen, SAMPLES, out=tmp_path / "run", batch_tokens=1)
    assert whole.manifest.state_bytes == 30 * ROW * 10
    anchors = counted["anchors"]
    (tmp_path / "run/samples/000001.nc").unlink()
    limit(monkeypatch, 1 << 40)
    resumed = ll.analyze(qwen, SAMPLES, out=tmp_path / "run", batch_tokens=1)
    assert resumed.data.identical(whole.data)
    assert counted["anchors"] == anchors + 3 * 30, "25 states in groups of ten at most"


def test_old_folders_name_no_memory(tmp_path: Path) -> None:
    manifest = ll.open_run(Path(__file__).parents[1] / "formats/format-1/run").manifest
    assert manifest.state_bytes is None


def test_state_bytes_are_a_share_of_what_is_free(monkeypatch: pytest.MonkeyPatch) -> None:
    free = {"cpu": 1000, "cuda": 900}
    monkeypatch.setattr(state_memory, "free_on", lambda device: free[device.type])
    cpu, card = torch.device("cpu"), torch.device("cuda", 0)
    assert state_memory.resolve_state_bytes(cpu) == 250
    assert state_memory.resolve_state_bytes(card) == 450
    assert state_memory.waiting_device(card, 450) == card
    assert state_memory.waiting_device(card, 451) == cpu, "what has no room on the card waits on the host"
    assert state_memory.waiting_device(cpu, 10**9) == cpu
    free["cuda"] = 400
    assert state_memory.resolve_state_bytes(card) == 250, "the host's share is larger"


def test_forecast_counts_the_states_that_wait() -> None:
    cpu, portion = torch.device("cpu"), 256 << 20
    assert state_memory.held_bytes(cpu, 1 << 40, 10, 30) == 30, "all texts together fit a portion"
    assert state_memory.held_bytes(cpu, 1 << 40, 10, 1 << 40) == portion
    assert state_memory.held_bytes(cpu, 1 << 40, 2 * portion, 1 << 40) == 2 * portion, "the longest text runs alone"
    assert state_memory.held_bytes(cpu, portion // 2, 2 * portion, 1 << 40) == portion // 2, "in groups"
