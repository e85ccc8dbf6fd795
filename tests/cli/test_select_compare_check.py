"""`layerlens select`, `compare` and `check`."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import layerlens as ll
from layerlens.cli.tables import show_choice, show_comparison
from layerlens.selection.comparison import compare_runs
from layerlens.types import RULES
from tests.support.choices import QWEN
from tests.support.command_line import Layerlens, one_line
from tests.support.damage import damaged
from tests.support.synthetic_runs import make_run


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
    assert json.loads(selected.out)["rule"] in RULES
    assert json.loads(selected.out) == ll.select_layer(ll.open_run(tmp_path / "run")).to_dict() | {
        "phases": json.loads(selected.out)["phases"]
    }
    compared = layerlens("compare", tmp_path / "run", folder / "run", "--json", "--out", tmp_path / "deep" / "table.csv")
    found = json.loads(compared.out)
    assert set(found) == {"runs", "differences", "verdict", "notes"}
    assert found["runs"][0] == found["runs"][1]
    assert {row["difference"] for row in found["differences"]} <= {0.0, None}
    assert "norm none compares scales" in found["notes"][0]
    assert (tmp_path / "deep" / "table.csv").read_text().count("\n") == 3
    checked = json.loads(layerlens("check", folder / "model", "--json").out)
    assert checked["ok"] is True
    assert set(checked["sites"]) == {"resid_pre", "attn_in", "attn_out", "resid_mid", "ffn_in", "ffn_out", "resid_post"}
    for verb, word in (("select", "boundary"), ("compare", "recommended layer")):
        plain = layerlens(verb, tmp_path / "run")
        assert plain.code == 0
        assert word in plain.out


@pytest.fixture(autouse=True)
def wide(monkeypatch: pytest.MonkeyPatch) -> None:
    """A terminal in which no cell of a table is broken."""
    monkeypatch.setenv("COLUMNS", "240")


def printed(show: Callable[[Any], None], answer: Any, capsys: pytest.CaptureFixture[str]) -> str:
    show(answer)
    return capsys.readouterr().out


def test_select_ends_with_what_to_do_and_what_speaks_against_it(capsys: pytest.CaptureFixture[str]) -> None:
    run = make_run([1.5, 0.3, *[-0.4] * 5, *[1.0] * 9], start=9.0, norm="final", samples=12, usable_from=8)
    choice = ll.select_layer(run, resamples=300)
    table, recommended = printed(show_choice, choice, capsys).split("\nrecommended ")
    assert "usable layers (better than guessing): 8-16" in table
    assert re.search(
        r"boundary +15 +100% +end of the FFN's exploration \(the paper's\) \(open: an end of the model by construction\)", table
    )
    lines = dict(reversed([re.split(r"  +", line, maxsplit=1) for line in recommended.strip().splitlines()[1:]]))
    assert "train layer 15 of 16, read with norm final" in recommended
    assert choice.recommendation.splitlines()[0] == "recommended: train layer 15 of 16, read with norm final"
    assert len(choice.recommendation.splitlines()) == len(recommended.strip().splitlines())
    assert lines["because"].startswith("layer 15: first layer from which the KL to the final policy stays under a tenth of its start")
    assert lines["chosen by"].startswith("rule settled, the first of boundary, settled, skill,")
    assert "chosen by" not in ll.select_layer(run, "settled", resamples=300).recommendation
    assert lines["stability"] == "100% of resamples of the 12 samples give this layer"
    assert lines["its policy"] == "gives the text +6.4 nats a token over guessing; the final policy's is +6.6 nats"
    assert "settled layer 15" not in lines["other rules"], "a rule that agrees is no other rule"
    assert lines["against it"].startswith("boundary, the rule of the paper, names layer 15 by construction"), "the first of them"
    assert "boundary layer 15 (open: an end of the model by construction)" in lines["other rules"]
    assert lines["next"] == "layerlens train ... --internal_layer 15 --internal_norm final --internal_rollouts N"
    assert "first with 50% of the final policy's skill" in table
    assert "first with 90% of the final policy's skill" in printed(show_choice, ll.select_layer(run, share=0.9, resamples=300), capsys)


def test_select_says_what_to_do_if_no_layer_is_usable(capsys: pytest.CaptureFixture[str]) -> None:
    shown = printed(show_choice, ll.select_layer(make_run([0.5] * 4 + [-0.5] * 4, start=6.0, usable_from=9), resamples=300), capsys)
    assert "usable layers (better than guessing): none" in shown
    assert "exploration 1-4, integration -, convergence 5-8 (of no meaning here: see diagnosis)" in shown
    assert "no layer to train under norm none" in shown
    assert "why none          boundary, the rule of the paper, names layer 4 (100%), which is not usable" in shown
    assert "norm none does not read this model: at its last layer it agrees with the final policy on 100% of tokens" in shown
    assert shown.rstrip().endswith("layerlens analyze MODEL PROMPTS --norm final --out RUN, then layerlens select RUN")
    noisy = make_run([0.5] * 6 + [0.05] * 10 + [-0.5] * 4, noise=0.6, samples=8)
    undetermined = printed(show_choice, ll.select_layer(noisy, "boundary", resamples=300), capsys)
    assert "undetermined: " in undetermined
    assert "analyse more samples, or name a layer yourself" in undetermined


def test_a_choice_of_an_earlier_version_is_shown_without_what_it_does_not_say(capsys: pytest.CaptureFixture[str]) -> None:
    old = ll.LayerChoice.from_dict(json.loads((Path(__file__).parents[1] / "formats" / "choice-1.json").read_text()))
    shown = printed(show_choice, old, capsys)
    assert "train layer 11 of 12, read with norm none" in shown
    for unknown in ("usable layers", "chosen by", "against it", "its policy", "diagnosis"):
        assert unknown not in shown


def test_compare_shows_what_exists_in_how_many_resamples_and_a_verdict(capsys: pytest.CaptureFixture[str]) -> None:
    runs = [make_run([0.2] * 10, norm="final", name="a"), make_run([0.2] * 12, norm="final", name="b", seed=3)]
    found = compare_runs(runs, resamples=300)
    found.table.loc[0, ["abruptness", "abruptness_low", "abruptness_high", "abruptness_exists"]] = [np.nan, np.nan, np.nan, 0.004]
    found.table.loc[1, ["abruptness", "abruptness_low", "abruptness_high", "abruptness_exists"]] = [0.5, 0.4, 0.6, 0.7]
    shown = printed(show_comparison, found, capsys)
    assert re.search(r"abruptness +none  \(exists in <1% of resamples\) +50%  \(40 to 60; exists in 70% of resamples\)", shown)
    assert re.search(r"exploration end +10, still open  \(10 to 10\) +12, still open  \(12 to 12\)", shown)
    assert shown.index("how late it settles") < shown.index("the paper's measures") < shown.index("recommended layer")
    assert shown.rstrip().splitlines()[-1] == found.verdict[-1]
    twins = compare_runs([runs[0], runs[1], runs[0]], resamples=300)
    header = next(line for line in printed(show_comparison, twins, capsys).splitlines() if line.strip())
    assert re.split("  +", header.strip()) == ["a (1)", "b", "a (3)"], "as the verdict calls them"
    assert {text.split(":")[0] for text in twins.verdict[:3]} == {"a (1)", "b", "a (3)"}
    none = printed(show_comparison, compare_runs([make_run([0.2] * 10)], resamples=300), capsys)
    assert none.startswith("note: norm none compares scales")
    assert "how late it settles" not in none


def test_a_segment_is_chosen_compared_and_drawn_by_its_rows_alone(layerlens: Layerlens, folder: Path, tmp_path: Path) -> None:
    run = ll.open_run(folder / "run")
    selected = json.loads(layerlens("select", folder / "run", "--segment", "prompt", "--json").out)
    assert selected["settings"]["segment"] == "prompt"
    assert selected["candidates"] == ll.select_layer(run, segment="prompt").to_dict()["candidates"]
    compared = json.loads(layerlens("compare", folder / "run", "--segment", "prompt", "--json").out)["runs"]
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


def test_select_says_which_other_rules_name_layers_that_are_not_usable() -> None:
    choice = ll.select_layer(make_run(QWEN, usable_from=20, samples=20), resamples=300)
    other = dict(line.split(": ", 1) for line in choice.recommendation.splitlines())["other rules"]
    assert re.search(r"boundary layer 6 \(\d+%, not usable\)", other)
    assert not re.search(r"(skill|settled|agreement) layer [23]\d \([^)]*not usable", other)
