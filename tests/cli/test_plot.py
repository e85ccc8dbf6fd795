"""`layerlens plot` on training folders."""

from __future__ import annotations

import json
from pathlib import Path

from tests.support.command_line import Layerlens, one_line
from tests.support.training_folders import write_training


def test_training_folders_take_no_options_of_runs(layerlens: Layerlens, tmp_path: Path) -> None:
    (tmp_path / "trainer_state.json").write_text("{}")
    for option in (
        ("--kind", "flow"),
        ("--sample", 0),
        ("--site", "ffn_out"),
        ("--rows", "all"),
        ("--over", "token"),
        ("--segment", "answer"),
    ):
        one_line(layerlens("plot", tmp_path, *option, "--out", tmp_path / "figures"), "leave them out for training folders")


def test_training_folders_of_one_name_have_figures_each(layerlens: Layerlens, tmp_path: Path) -> None:
    seeds = [write_training(tmp_path / f"seed{seed}" / "bupo", layers=4, layer=2, every=20, seed=seed) for seed in (0, 1)]
    told = json.loads(layerlens("plot", *seeds, "--out", tmp_path / "figures", "--json").out)
    drawn = told["figures"]
    assert len(set(drawn)) == len(drawn)
    assert [reason.partition(":")[0] for reason in told["skipped"]] == ["bupo-1-difference", "bupo-2-difference"]  # the looks are empty
    for kind in ("layer-entropy", "modules", "drift", "refinement"):
        assert {str(tmp_path / "figures" / f"bupo-{number}-{kind}.png") for number in (1, 2)} <= set(drawn)
