"""Model folders with something wrong in them."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from layerlens.prompts import chat_template
from tests.support.command_line import Layerlens, one_line

ENDLESS = "{% for a in range(9999) %}" * 4 + "{% endfor %}" * 4


def altered(folder: Path, to: Path, file: str, **changes: Any) -> Path:
    """A copy of the folder's model with entries of one of its JSON files changed or added."""
    shutil.copytree(folder / "model", to)
    there = json.loads((to / file).read_text()) if (to / file).exists() else {}
    (to / file).write_text(json.dumps({**there, **changes}))
    return to


@pytest.mark.parametrize("length", [1, 2, 3])
def test_adapters_that_lead_back_to_themselves(layerlens: Layerlens, tmp_path: Path, length: int) -> None:
    for number in range(length):
        (tmp_path / str(number)).mkdir()
        base = str(tmp_path / str((number + 1) % length))
        (tmp_path / str(number) / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": base}))
    one_line(layerlens("check", tmp_path / "0"), f"leads back to {tmp_path / '0'}", "the model before any adapters")


@pytest.mark.parametrize("end", [10**6, -5, "x", [[1]], [1, 2.5]])
def test_an_end_token_that_is_none(layerlens: Layerlens, folder: Path, tmp_path: Path, end: Any) -> None:
    model = altered(folder, tmp_path / "m", "config.json")
    (model / "generation_config.json").write_text(json.dumps({"eos_token_id": end}))
    ended = layerlens("analyze", model, folder / "prompts.txt", "--max-new-tokens", 2, "--out", tmp_path / "run")
    assert ended.code == 2
    last = ended.err.strip().splitlines()[-1]
    assert last.startswith("layerlens: m: eos_token_id must be ids from 0 to ")
    assert "generation_config.json" in last


def test_generation_settings_of_wrong_types_change_nothing(layerlens: Layerlens, folder: Path, tmp_path: Path) -> None:
    model = altered(folder, tmp_path / "m", "generation_config.json", temperature="hot", do_sample="maybe", max_length="x", top_k=[1])
    for name, which in (("plain", folder / "model"), ("odd", model)):
        ended = layerlens("analyze", which, folder / "prompts.txt", "--max-new-tokens", 2, "--out", tmp_path / name)
        assert ended.code == 0, ended.err
    texts = [sorted((tmp_path / name / "texts").glob("0*.json"))[0].read_bytes() for name in ("plain", "odd")]
    assert texts[0] == texts[1]


def test_a_model_without_layers(layerlens: Layerlens, folder: Path, tmp_path: Path) -> None:
    model = altered(folder, tmp_path / "m", "config.json", num_hidden_layers=0, layer_types=[])
    one_line(layerlens("check", model), "num_hidden_layers 0", "1 layer or more")
    altered(folder, tmp_path / "n", "config.json", num_hidden_layers=-1)
    one_line(layerlens("check", tmp_path / "n"), "num_hidden_layers", "-1")


def test_a_chat_template_that_never_ends(layerlens: Layerlens, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chat_template, "SECONDS", 0.3)
    model = altered(folder, tmp_path / "m", "config.json")
    (model / "chat_template.jinja").write_text(ENDLESS)
    ended = layerlens("analyze", model, folder / "prompts.txt", "--max-new-tokens", 2, "--out", tmp_path / "run")
    one_line(ended, "prompt 0: the chat template did not end within 0.3 s", "--no-chat")
