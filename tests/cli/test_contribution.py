"""`layerlens contribution`."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import layerlens as ll
from layerlens.evaluate import evaluate
from layerlens.storage.training_folder import TrainedAs
from tests.support.command_line import Layerlens, one_line
from tests.support.evaluations import even_words, some_problems
from tests.support.tiny_models import tiny_model, tiny_tokenizer


def test_contributions_of_evaluated_folders(layerlens: Layerlens, tmp_path: Path) -> None:
    words = []
    for seed, name in enumerate(("base", "all", "3")):
        lens = ll.LensModel.wrap(tiny_model(seed=seed), tiny_tokenizer())
        evaluate(lens, some_problems(), 4, reward=even_words, generation=ll.Generation(4), out=tmp_path / name / "toy", name="toy")
        words.append(f"{name}={tmp_path / name}")
    done = layerlens("contribution", *words, "--out", tmp_path / "figures")
    assert (done.code, done.err) == (0, "")
    assert "layer 3" in done.out
    assert "5 problems, 1 seed(s)" in done.out
    assert (tmp_path / "figures" / "contribution.png").stat().st_size > 5_000
    assert (tmp_path / "figures" / "contribution.csv").read_text().startswith("layers,layer,gain,contribution,low")
    found = json.loads(layerlens("contribution", *words, "--json", "--no-figure", "--out", tmp_path / "figures").out)
    assert [row["layers"] for row in found["layers"]] == ["3"]
    assert found["figures"] == []
    one_line(
        layerlens("contribution", words[0], "4"), "no folder 4: give evaluations as FOLDER, or base=FOLDER, all=FOLDER or LAYER=FOLDER"
    )
    one_line(layerlens("contribution", words[0], tmp_path / "3"), f"does not say what was trained: give it as base={tmp_path / '3'}")
    one_line(layerlens("contribution", *words[:2]), "no layer trained alone")


def test_trainings_say_what_was_trained(layerlens: Layerlens, tmp_path: Path) -> None:
    """Folders in any order give what the words with WHAT= give in the order of the seeds."""

    def evaluated(name: str, weights: int, trained: TrainedAs | None) -> Path:
        lens = replace(ll.LensModel.wrap(tiny_model(seed=weights), tiny_tokenizer()), trained=trained)
        evaluate(lens, some_problems(), 4, reward=even_words, generation=ll.Generation(4), out=tmp_path / name / "toy", name="toy")
        return tmp_path / name

    base, rate = evaluated("base", 0, None), {"all": 2e-4, "1-2": 7e-4}
    folders = {
        (layers, seed): evaluated(f"of={layers}-{seed}", 1 + number, TrainedAs(layers, "final policy", 8, seed, learning_rate=rate[layers]))
        for number, (layers, seed) in enumerate([("all", 0), ("all", 1), ("1-2", 0), ("1-2", 1)])
    }
    said = [f"{layers}={folder}" for (layers, _), folder in folders.items()]
    options = ("--json", "--no-figure", "--out", tmp_path / "figures")
    expected = json.loads(layerlens("contribution", f"base={base}", *said, *options).out)
    assert json.loads(layerlens("contribution", *reversed(folders.values()), f"base={base}", *options).out) == expected
    assert [(row["layers"], row["learning_rate"]) for row in expected["layers"]] == [("1-2", 7e-4)]
    told = layerlens("contribution", f"base={base}", *said, *options[1:]).out
    assert "Learning rates: layers alone 0.0007, all layers 0.0002: what differs between them may come from the rate." in told
    one_line(
        layerlens("contribution", f"base={base}", *said[:2], *(f"3={folder}" for folder in list(folders.values())[2:])),
        "is given as layer 3, but its training says layers 1-2",
    )
    twin = evaluated("twin", 5, TrainedAs("all", "final policy", 8, 1))
    one_line(
        layerlens("contribution", f"base={base}", *folders.values(), twin),
        "two trainings of the same layers (all) with seed 1: leave one out",
    )
