from __future__ import annotations

import itertools
import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from recipes.tiny_models.card import accuracy_rows
from recipes.tiny_models.evaluate import EvaluationSettings, evaluate_folder, summarise

from layerlens.errors import ModelLoadError
from layerlens.prompts.arithmetic import Problem
from layerlens.storage.bundled import bundled_model

results = st.tuples(st.sampled_from(["a", "b"]), st.integers(1, 2), st.booleans(), st.lists(st.booleans(), min_size=4, max_size=4))


def summary_of(rows: list[tuple[str, int, bool, list[bool]]]) -> dict:
    chosen = [Problem((), "", "", kind, difficulty, "") for kind, difficulty, _, _ in rows]
    return summarise(chosen, np.array([[greedy] for _, _, greedy, _ in rows]), np.array([sampled for *_, sampled in rows]))


@given(st.lists(results, min_size=1, max_size=12))
def test_summarise_groups_average_to_all_problems(rows: list[tuple[str, int, bool, list[bool]]]) -> None:
    summary = summary_of(rows)
    for grouping, name in itertools.product(("by_kind", "by_difficulty"), ("greedy", "avg@4", "pass@4")):
        groups = summary[grouping].values()
        assert sum(group["problems"] for group in groups) == summary["problems"] == len(rows)
        assert sum(group["problems"] * group[name]["mean"] for group in groups) == pytest.approx(len(rows) * summary[name]["mean"])
    assert summary["greedy"]["mean"] == pytest.approx(np.mean([greedy for _, _, greedy, _ in rows]))
    assert summary["avg@4"]["mean"] == pytest.approx(np.mean([sampled for *_, sampled in rows]))
    assert summary["pass@4"]["mean"] == pytest.approx(np.mean([any(sampled) for *_, sampled in rows]))


def test_accuracy_rows_are_percent_with_an_interval_if_there_is_one() -> None:
    names, rows = accuracy_rows(summary_of([("a", 1, True, [True] * 4), ("b", 1, True, [True, True, True, False])]))
    assert names == ["greedy", "avg@4", "pass@4"]
    assert rows[0] == ["all", "2", "100.0 [22.4, 100.0]*", "87.5 [0.0, 100.0]", "100.0 [22.4, 100.0]*"]
    assert rows[1:3] == [["a", "1", "100.0", "100.0", "100.0"], ["b", "1", "100.0", "75.0", "100.0"]]
    assert rows[3] == ["difficulty 1", *rows[0][1:]]


def test_evaluate_folder_is_reproducible_and_plain_json() -> None:
    settings = EvaluationSettings(n=4, answers=2, max_new_tokens=120)
    result = evaluate_folder(bundled_model("tiny-qwen3"), settings)
    assert (result["model"], result["problems"]) == ("tiny-qwen3", 4)
    assert evaluate_folder(bundled_model("tiny-qwen3"), settings) == result
    assert json.loads(json.dumps(result, allow_nan=False)) == result


def test_evaluate_folder_refuses_a_folder_without_a_model(tmp_path: Path) -> None:
    with pytest.raises(ModelLoadError, match="could not be loaded"):
        evaluate_folder(tmp_path, EvaluationSettings(n=4))
