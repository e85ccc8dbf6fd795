"""docs/real-models.md shows what benchmarks/real_models.json holds: `python -m benchmarks.real_models --check`."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from benchmarks import real_models

Edit = Callable[[dict[str, Any]], Any]


@pytest.fixture
def check(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[[Edit, str], object]:
    """What the command ends with, if the results and the page are edited first: 0, or a sentence."""

    def run(edit: Edit, added: str) -> object:
        found = json.loads(real_models.RECORD.read_text(encoding="utf-8"))
        edit(found)
        record, docs = tmp_path / "real_models.json", tmp_path / "real-models.md"
        record.write_text(json.dumps(found), encoding="utf-8")
        docs.write_text(real_models.DOCS.read_text(encoding="utf-8") + added, encoding="utf-8")
        with monkeypatch.context() as edited:
            edited.setattr(real_models, "RECORD", record)
            edited.setattr(real_models, "DOCS", docs)
            edited.setattr("sys.argv", ["real_models", "--check"])
            with pytest.raises(SystemExit) as ended:
                real_models.main()
        return ended.value.code

    return run


def test_the_committed_page_is_made_from_the_committed_results(check: Callable[[Edit, str], object]) -> None:
    assert check(lambda found: None, "") == 0, "run python -m benchmarks.real_models, and never edit the page or its results"


def test_an_edited_page_is_stale(check: Callable[[Edit, str], object]) -> None:
    assert str(check(lambda found: None, "One more sentence.\n")).endswith("real-models.md is stale")


@pytest.mark.parametrize(
    "edit",
    [
        lambda found: found["models"]["tiny-qwen3"]["settling"]["late_share"].update(value=0.5),
        lambda found: found["models"]["gemma3-270m"]["runs"]["none"].update(last_agreement=0.5),
        lambda found: found["models"]["tiny-llama"]["runs"]["final"]["rules"]["settled"].update(layer=2),
        lambda found: found["models"]["smollm2-135m-instruct"]["lens"]["tuned"].reverse(),
        lambda found: found["verdicts"].pop(),
        lambda found: found.update(lens_steps=101),
    ],
)
def test_edited_results_make_the_page_stale(check: Callable[[Edit, str], object], edit: Edit) -> None:
    assert str(check(edit, "")).endswith("real-models.md is stale")
