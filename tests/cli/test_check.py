"""`layerlens check`: the layout, where it comes from, and the row to paste."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from layerlens.models import LAYOUTS, Layout
from tests.support.architectures import build, tiny_architecture
from tests.support.command_line import Layerlens
from tests.support.tiny_models import tiny_tokenizer


def save(model: Any, folder: Path) -> Path:
    model.save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return folder


def test_check_shows_a_row_with_its_factors(tmp_path: Path, layerlens: Layerlens) -> None:
    folder = save(tiny_architecture("granite"), tmp_path / "m")
    code, out, _ = layerlens("check", folder)
    assert code == 0
    assert "layout        a row of LAYOUTS" in out
    assert "output of self_attn x residual_multiplier" in out
    assert "row  " not in out
    found = json.loads(layerlens("check", folder, "--json", "--discover")[1])
    assert (found["layout"], found["ok"]) == ("discovered", True)
    assert found["logits"] == {"scale": pytest.approx(1 / 3), "softcap": None}
    assert eval(found["row"].partition(": ")[2].rstrip(","), {"Layout": Layout}) == LAYOUTS["granite"]


@pytest.mark.parametrize("options", [(), ("--discover",)])
def test_check_prints_the_row_of_an_architecture_without_one(options: tuple[str, ...], tmp_path: Path, layerlens: Layerlens) -> None:
    code, out, _ = layerlens("check", save(build("starcoder2", {}), tmp_path / "m"), *options)
    assert code == 0
    assert "layout        discovered" in out
    assert 'row           "starcoder2": Layout(),' in out


def test_check_refuses_what_discovery_cannot_read(tmp_path: Path, layerlens: Layerlens) -> None:
    sizes = {"n_embd": 32, "n_head": 4, "n_layer": 3, "n_positions": 128}
    code, out, err = layerlens("check", save(build("openai-gpt", sizes), tmp_path / "m"))
    assert (code, out) == (2, "")
    assert err.count("\n") == 1
    assert "openai-gpt, block 1: no sum of its modules' outputs gives resid_post" in err


def test_a_run_is_checked_by_its_digests(layerlens: Layerlens, folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder / "run", tmp_path / "run")
    ended = layerlens("check", tmp_path / "run")
    assert (ended.code, ended.err) == (0, "")
    assert "3 of 3 samples are there and as they were written" in ended.out
    samples = tmp_path / "run" / "samples"
    content = (samples / "000000.nc").read_bytes()
    (samples / "000000.nc").write_bytes((samples / "000001.nc").read_bytes())
    (samples / "000001.nc").write_bytes(content)
    ended = layerlens("check", tmp_path / "run")
    assert (ended.code, ended.err) == (2, "")
    assert "1 of 3 samples" in ended.out
    assert "damaged       000000.nc: it is sample 1, in the place of 0" in ended.out
    told = json.loads(layerlens("check", tmp_path / "run", "--json").out)
    assert told["damaged"] == {"000000.nc": "it is sample 1, in the place of 0", "000001.nc": "it is sample 0, in the place of 1"}
    assert (told["ok"], told["undigested"], told["strange"]) == (False, 0, [])
