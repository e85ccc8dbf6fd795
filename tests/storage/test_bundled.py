"""Names of what comes with layerlens, and where it lies."""

from __future__ import annotations

import json

from layerlens.storage.bundled import MODELS, TEMPLATES, bundled_model, bundled_prompts, bundled_template


def test_bundled_models_and_templates_have_their_files() -> None:
    for name in MODELS:
        folder = bundled_model(name)
        assert folder is not None
        assert {"config.json", "model.safetensors", "tokenizer.json"} <= {file.name for file in folder.iterdir()}
    for name in TEMPLATES:
        file = bundled_template(name)
        assert file is not None
        assert "{%" in file.read_text(encoding="utf-8")


def test_other_names_are_not_bundled() -> None:
    assert bundled_model("Qwen/Qwen3-4B") is None
    assert bundled_template("chatml") is None


def test_every_bundled_prompt_has_a_ground_truth() -> None:
    rows = [json.loads(line) for line in bundled_prompts().read_text(encoding="utf-8").splitlines()]
    assert len({row["id"] for row in rows}) == len(rows) > 0
    assert all(row["prompt"] and row["ground_truth"] for row in rows)
