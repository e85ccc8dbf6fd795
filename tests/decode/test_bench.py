"""`layerlens bench` times what it says; its methods and those of other libraries give the same entropies."""

from __future__ import annotations

import time
from collections.abc import Callable

import pytest
import torch
from benchmarks.other_libraries import other_libraries

from layerlens.decode import bench as decode_bench
from layerlens.decode.bench import PRODUCT, Shape, bench, methods, peak_memory
from layerlens.errors import SelectionError

SMALL = Shape(rows=40, d_model=48, vocabulary=3001)


@pytest.mark.filterwarnings("ignore")  # TransformerLens' own
def test_methods_and_other_libraries_give_the_same_entropies() -> None:
    table = bench(SMALL, repeats=1, memory=False, others=other_libraries())
    expected = {"layerlens (torch)", "whole logits (log_softmax)", *other_libraries()}
    assert {"whole logits (softmax and log_softmax)", "TRL's chunked log-probs", "TransformerLens' logit_readout"} <= expected
    assert expected <= set(table.index)
    bare = table.index.str.startswith(PRODUCT)
    assert table.error[bare].isna().all()
    assert (table.error[~bare] < 1e-4).all()


def test_bench_reports_the_best_round_and_ratios_to_the_fastest_product(monkeypatch: pytest.MonkeyPatch) -> None:
    """By a clock that only the methods move: a product takes 2 s and then 1 s, another 4 s, the rest 3 s."""
    clock = [0.0]
    products = {f"{PRODUCT} (a)": [9.0, 2.0, 1.0], f"{PRODUCT} (b)": [9.0, 4.0, 4.0], "c": [9.0, 3.0, 3.0]}

    def taking(seconds: list[float]) -> Callable[..., None]:
        rounds = iter([0.0, *seconds])  # the first call, which looks at the error, and the round to warm up do not count
        return lambda hidden, weight: clock.__setitem__(0, clock[0] + next(rounds))

    monkeypatch.setattr(decode_bench, "methods", lambda shape, compiled: {name: taking(rounds) for name, rounds in products.items()})
    monkeypatch.setattr(time, "perf_counter", lambda: clock[0])
    table = bench(SMALL, repeats=2, memory=False)
    assert table.seconds.tolist() == [1.0, 4.0, 3.0]
    assert table.ratio.tolist() == [1.0, 4.0, 3.0]
    operations = 2 * SMALL.rows * SMALL.d_model * SMALL.vocabulary
    assert table.gflops.tolist() == pytest.approx([operations / 1e9, operations / 4e9, operations / 3e9])


def test_error_of_bfloat16_is_float32s_by_the_readout_and_not_by_whole_logits() -> None:
    table = bench(Shape(rows=40, d_model=48, vocabulary=3001, dtype="bfloat16"), repeats=1, memory=False)
    assert table.error["layerlens (torch)"] < 1e-4 < table.error["whole logits (log_softmax)"]


def test_peak_memory_holds_the_logits_only_if_they_are_whole() -> None:
    shape = Shape(rows=512, d_model=16, vocabulary=60_000)
    logits = shape.rows * shape.vocabulary * 4 / 2**20
    assert peak_memory(shape, methods(shape)["whole logits (log_softmax)"]) > 1.9 * logits
    assert peak_memory(shape, methods(shape)["layerlens (torch)"]) < 0.5 * logits


def test_compile_is_timed_only_if_asked_for() -> None:
    assert "layerlens (compile)" not in methods(SMALL)
    assert "layerlens (compile)" in methods(SMALL, compiled=True)


@pytest.mark.parametrize(
    ("shape", "told"),
    [
        (Shape(rows=0), "must be 1 or more"),
        (Shape(dtype="int8"), "dtype 'int8' is not timed: choose from float32, bfloat16, float16"),
        (Shape(device="nowhere"), "nothing can be put on device 'nowhere'"),
    ],
)
def test_bench_refuses_what_cannot_be_timed(shape: Shape, told: str) -> None:
    with pytest.raises(SelectionError, match=told):
        bench(shape)


def test_bench_restores_the_number_of_threads() -> None:
    before = torch.get_num_threads()
    bench(SMALL, repeats=1, threads=before + 1, memory=False)
    assert torch.get_num_threads() == before
