from __future__ import annotations

import json
from pathlib import Path

from recipes.tiny_models.prompts import main as write_prompts

from layerlens.prompts.arithmetic import KINDS
from layerlens.rewards import verify
from layerlens.storage.bundled import bundled_prompts


def test_prompts_command_writes_the_bundled_prompts(tmp_path: Path) -> None:
    write_prompts(tmp_path / "made.jsonl")
    assert (tmp_path / "made.jsonl").read_bytes() == bundled_prompts().read_bytes()
    rows = [json.loads(line) for line in bundled_prompts().read_text(encoding="utf-8").splitlines()]
    assert len(rows) == 64 == len({row["id"] for row in rows})
    assert {row["kind"] for row in rows} == set(KINDS)
    assert all(verify(rf"\boxed{{{row['ground_truth']}}}", row["ground_truth"]) for row in rows)
