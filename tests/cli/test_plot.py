"""`layerlens plot` on training folders."""

from __future__ import annotations

import json
from pathlib import Path

import pandas as pd
import pytest
from PIL import Image

import layerlens as ll
from layerlens.results import RunFolder
from tests.support.command_line import Layerlens, one_line
from tests.support.thinking_runs import thinking_run
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


def test_a_training_without_a_monitor_has_its_figures_and_one_line_about_the_others(layerlens: Layerlens, tmp_path: Path) -> None:
    entries = [
        {
            "step": step,
            "loss": 0.1,
            "reward": 0.1 * step,
            "entropy": 1 / step,
            "completions/mean_length": 9.0,
            "distill/js_layer_3": 0.5 / step,
        }
        for step in (1, 2, 3, 4)
    ]
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "trainer_state.json").write_text(json.dumps({"global_step": 4, "log_history": entries}))
    told = json.loads(layerlens("plot", tmp_path / "run", "--with-data", "--out", tmp_path / "figures", "--json").out)
    assert [Path(path).name for path in told["figures"] if path.endswith(".png")] == ["training.png", "run-reward-entropy.png"]
    assert told["skipped"] == ["what happened inside run: train with --monitor_every 10, say, to see it"]
    panels = pd.read_csv(tmp_path / "figures" / "training.csv")["value_axis"].dropna().unique()
    assert "JS of layer 3 to the final policy [bits]" in [" ".join(label.split()) for label in panels]


def test_figures_carry_their_numbers_and_the_command_that_draws_them(layerlens: Layerlens, folder: Path, tmp_path: Path) -> None:
    told = layerlens("plot", folder / "run", "--kind", "flow,sites", "--with-data", "-o", tmp_path / "figures").out.split()
    assert [Path(path).suffix for path in told] == [".png", ".csv"] * 2
    run = ll.open_run(folder / "run")
    table = pd.read_csv(next(path for path in told if path.endswith("-sites.csv")))
    assert len(table) == len(run.layers) * len(run.sites)
    cell = table[(table["y_label"] == 2) & (table["x_label"] == "ffn_out")]
    assert cell["value"].item() == pytest.approx(float(run.mean("entropy")["mean"].sel(layer=2, site="ffn_out")), rel=1e-6)
    assert set(table["value_axis"]) == {"mean entropy of the internal policy [nats]"}
    with Image.open(told[0]) as figure:
        assert figure.info["Description"] == f"layerlens plot {folder / 'run'} --kind flow,sites --with-data"
    again = layerlens("plot", folder / "run", "--kind", "flow,sites", "--with-data", f"--out={tmp_path / 'again'}").out.split()
    assert [Path(path).read_bytes() for path in again] == [Path(path).read_bytes() for path in told]


def test_settling_figures_are_drawn_of_runs_that_have_it_and_told_right_from_wrong_by_a_reward(
    layerlens: Layerlens, tmp_path: Path
) -> None:
    run = thinking_run()
    folder = RunFolder.begin(tmp_path / "run", run.manifest)
    for number in range(3):
        folder.write(number, run.sample(number))
    drawn = layerlens("plot", folder.path, "-o", tmp_path / "plain").out.split()
    assert {Path(path).stem for path in drawn} >= {"thinker-settling", "thinker-settling-text"}
    assert not [path for path in drawn if "right-wrong" in path or "deep-thinking" in path]
    told = layerlens("plot", folder.path, "-o", tmp_path / "told", "--reward", "boxed").out.split()
    assert {Path(path).stem for path in told} - {Path(path).stem for path in drawn} == {
        "thinker-settling-right-wrong",
        "thinker-deep-thinking",
    }
    one_line(layerlens("plot", folder.path, "--kind", "deep-thinking", "-o", tmp_path), "name a reward: --reward math")


@pytest.mark.parametrize("words", [("--sample", "²"), ("--sample", "99"), ("--sample", "-1"), ("--site", "x"), ("--sample", "9" * 30)])
def test_a_sample_or_site_that_is_not_there_is_one_line_and_draws_nothing(
    words: tuple[str, str], layerlens: Layerlens, folder: Path, tmp_path: Path
) -> None:
    one_line(layerlens("plot", folder / "run", "--out", tmp_path / "figures", *words), f"no {words[0][2:]} ", words[1])
    assert not (tmp_path / "figures").exists()
