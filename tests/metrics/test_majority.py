"""The majority vote."""

from __future__ import annotations

import pytest

from layerlens.metrics.majority import majority


@pytest.mark.parametrize(("results", "chosen"), [
    (["a", "b", "b"], 1), (["a", "b", "a", "b"], 0), ([None, None, "a"], 2), ([None, "b", None], 1), ([None], None), ([], None),
])  # fmt: skip
def test_majority_is_the_first_answer_with_the_most_frequent_result(results: list[str | None], chosen: int | None) -> None:
    assert majority(results) == chosen
