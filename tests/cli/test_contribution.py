"""`layerlens contribution`."""

from __future__ import annotations

import json
from pathlib import Path

import layerlens as ll
from layerlens.evaluate import evaluate
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
    one_line(layerlens("contribution", words[0], "3"), "base=FOLDER, all=FOLDER or LAYER=FOLDER; got '3'")
    one_line(layerlens("contribution", *words[:2]), "no layer trained alone")
