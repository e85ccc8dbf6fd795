"""`layerlens select`, `compare` and `check`."""

from __future__ import annotations

import json
from pathlib import Path

import torch

import layerlens as ll
from tests.support.command_line import Layerlens, one_line
from tests.support.damage import damaged


def test_analyze_then_select_compare_and_check(layerlens: Layerlens, folder: Path, tmp_path: Path) -> None:
    arguments = ("analyze", folder / "model", folder / "prompts.txt", "--max-new-tokens", 6, "--out", tmp_path / "run")
    done = layerlens(*arguments)
    assert (done.code, done.err) == (0, "")
    assert "3 samples" in done.out
    assert ll.open_run(tmp_path / "run").data.equals(ll.open_run(folder / "run").data), "the command is the function"
    again = layerlens(*arguments, "--json")
    assert again.code == 0
    assert json.loads(again.out)["samples"] == 3
    selected = layerlens("select", tmp_path / "run", "--json")
    assert selected.code == 0
    assert json.loads(selected.out)["rule"] == "boundary"
    assert json.loads(selected.out) == ll.select_layer(ll.open_run(tmp_path / "run")).to_dict() | {
        "phases": json.loads(selected.out)["phases"]
    }
    compared = layerlens("compare", tmp_path / "run", folder / "run", "--json", "--out", tmp_path / "deep" / "table.csv")
    rows = json.loads(compared.out)
    assert len(rows) == 2
    assert rows[0] == rows[1]
    assert (tmp_path / "deep" / "table.csv").read_text().count("\n") == 3
    checked = json.loads(layerlens("check", folder / "model", "--json").out)
    assert checked["ok"] is True
    assert set(checked["sites"]) == {"resid_pre", "attn_in", "attn_out", "resid_mid", "ffn_in", "ffn_out", "resid_post"}
    for verb in ("select", "compare"):
        plain = layerlens(verb, tmp_path / "run")
        assert plain.code == 0
        assert "boundary" in plain.out


def test_a_segment_is_chosen_compared_and_drawn_by_its_rows_alone(layerlens: Layerlens, folder: Path, tmp_path: Path) -> None:
    run = ll.open_run(folder / "run")
    selected = json.loads(layerlens("select", folder / "run", "--segment", "prompt", "--json").out)
    assert selected["settings"]["segment"] == "prompt"
    assert selected["candidates"] == ll.select_layer(run, segment="prompt").to_dict()["candidates"]
    compared = json.loads(layerlens("compare", folder / "run", "--segment", "prompt", "--json").out)
    assert compared[0]["effective_depth"] == ll.compare([run], segment="prompt")["effective_depth"][0]
    assert compared[0]["effective_depth"] != ll.compare([run])["effective_depth"][0]
    drawn = layerlens("plot", folder / "run", "--kind", "flow", "--segment", "prompt", "--format", "svg", "-o", tmp_path)
    assert "prompt rows" in Path(drawn.out.strip()).read_text()
    one_line(layerlens("select", folder / "run", "--segment", "thinking"), "no thinking rows, only prompt and answer")


def test_check_refuses_a_model_with_nan(layerlens: Layerlens, folder: Path, tmp_path: Path) -> None:
    def spoil(weights: dict[str, torch.Tensor]) -> None:
        weights["model.layers.2.mlp.up_proj.weight"][0, 0] = float("nan")

    broken = damaged(folder, tmp_path, spoil)
    shown = layerlens("check", broken)
    assert shown.code == 2
    assert "REFUSED" in shown.out
    answer = layerlens("check", broken, "--json")
    assert answer.code == 2
    assert json.loads(answer.out)["ok"] is False
    one_line(layerlens("analyze", broken, folder / "prompts.txt", "--out", tmp_path / "out"), "not finite")
