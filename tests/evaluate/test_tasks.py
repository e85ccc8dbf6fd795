from __future__ import annotations

from pathlib import Path

import pytest

from layerlens.errors import PromptError
from layerlens.evaluate import TASKS, find_task
from layerlens.evaluate.tasks import DATA_VARIABLE


def test_find_task_takes_public_sets_from_the_users_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(DATA_VARIABLE, raising=False)
    for file, _ in TASKS.values():
        (tmp_path / file).touch()
    assert {name: find_task(name, tmp_path).answers for name in TASKS} == {"math500": 16, "amc23": 16, "aime24": 32, "aime25": 32}
    with pytest.raises(PromptError, match=r"math500 needs the file math500.parquet: .*--data DIR or LAYERLENS_DATA"):
        find_task("math500")
    with pytest.raises(PromptError, match=r"aime24: expected .*aime_2024.parquet, which is not there"):
        find_task("aime24", tmp_path / "elsewhere")
    monkeypatch.setenv(DATA_VARIABLE, str(tmp_path))
    assert find_task("amc23").source == tmp_path / "amc2023.parquet"


def test_find_task_knows_files_hub_datasets_and_arithmetic(tmp_path: Path) -> None:
    mine = tmp_path / "mine.jsonl"
    mine.touch()
    assert find_task(str(mine)).name == "mine"
    assert find_task("owner/name").source == "owner/name"
    assert find_task("arithmetic").reward == "arithmetic"
    fresh = find_task("arithmetic:12:3")
    assert len({str(row["prompt"]) for row in fresh.source}) == 12  # type: ignore[union-attr, index]
    assert fresh.name == "arithmetic-12-3"
    assert find_task("arithmetic:12:3") == fresh != find_task("arithmetic:12:4")
    for wrong, told in (("gsm9k", "unknown task 'gsm9k'"), ("gone.parquet", "no such prompt file"), ("arithmetic:0", "at least 1")):
        with pytest.raises(PromptError, match=told):
            find_task(wrong)
