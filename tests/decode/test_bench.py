"""`layerlens bench` times what it says, and all ways give the same entropies."""

from __future__ import annotations

import pytest

from layerlens.decode.bench import PRODUCT, Shape, bench, peak_memory, ways
from layerlens.errors import SelectionError

pytestmark = pytest.mark.filterwarnings("ignore")  # TransformerLens' own
SMALL = Shape(rows=40, d=48, vocabulary=3001)


def test_every_way_gives_the_same_entropies() -> None:
    table = bench(SMALL, repeats=1, memory=False)
    assert {"layerlens (torch)", "softmax and log_softmax", "TRL's chunked log-probs", "TransformerLens' logit_readout"} <= set(table.index)
    bare = table.index.str.startswith(PRODUCT)
    assert table.error[bare].isna().all()
    assert (table.error[~bare] < 1e-4).all()
    assert (table.seconds > 0).all()
    assert table.ratio[bare].min() == 1


def test_bfloat16_is_read_in_float32_and_by_the_usual_formula_is_not() -> None:
    table = bench(Shape(rows=40, d=48, vocabulary=3001, dtype="bfloat16"), repeats=1, memory=False)
    assert table.error["layerlens (torch)"] < 1e-4 < table.error["softmax and log_softmax"]


def test_peak_memory_is_that_of_the_logits_where_they_are_held_whole() -> None:
    shape = Shape(rows=512, d=16, vocabulary=60_000)
    logits = shape.rows * shape.vocabulary * 4 / 2**20
    assert peak_memory(shape, "log_softmax, then exp") > 1.9 * logits
    assert peak_memory(shape, "layerlens (torch)") < 0.5 * logits


def test_the_compiled_way_only_when_asked_for() -> None:
    assert "layerlens (compile)" not in ways(SMALL)
    assert "layerlens (compile)" in ways(SMALL, compiled=True)


@pytest.mark.parametrize(
    ("shape", "told"),
    [
        (Shape(rows=0), "must be 1 or more"),
        (Shape(dtype="int8"), "dtype 'int8' is not timed: choose from float32, bfloat16, float16"),
        (Shape(device="nowhere"), "nothing can be put on device 'nowhere'"),
    ],
)
def test_what_can_not_be_timed_is_refused(shape: Shape, told: str) -> None:
    with pytest.raises(SelectionError, match=told):
        bench(shape)
