"""Folders that earlier versions wrote are read as these versions read them: `expected.json` is what they said."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

import layerlens as ll
from layerlens.errors import RunError
from layerlens.evaluate import open_evaluation
from tests.support.tiny_models import random_ids

FORMATS = Path(__file__).parents[1] / "formats"
FORMAT_1 = FORMATS / "format-1"
"""A run whose tokens were drawn until a precision was reached, a run of two drawn tokens per sample, and an evaluation."""
EXPECTED = json.loads((FORMAT_1 / "expected.json").read_text())
FORMAT_2 = FORMATS / "format-2"
"""An evaluation in which answers and problems were called samples: two answers to each problem in one round, then a third."""


@pytest.mark.parametrize("name", ["run", "run-drawn"])
def test_run_of_format_1_gives_the_numbers_it_gave(name: str) -> None:
    run, expected = ll.open_run(FORMAT_1 / name), EXPECTED[name]
    assert run.mean("entropy")["mean"].sel(site="resid_post").values.tolist() == expected["entropy"]
    assert run.mean("entropy", drop_first=2)["mean"].sel(site="resid_post").values.tolist() == expected["without_first"]
    assert float(np.nansum(run.data["logp_next"].values.astype(float))) == expected["logp_sum"]
    assert [run.sample(number)["text_token_id"].values.tolist() for number in range(2)] == expected["texts"]
    assert "sample_token_ids" not in run.data.coords


def test_stopping_verdict_of_format_1_is_read_by_its_new_names() -> None:
    stopping = ll.open_run(FORMAT_1 / "run").manifest.stopping
    assert stopping is not None
    assert (stopping.goal, stopping.ending, stopping.stable_share, stopping.rows_decoded) == ("precision", "precision", 0.95, 17)
    assert ll.open_run(FORMAT_1 / "run-drawn").manifest.stopping is None


def test_evaluation_of_format_1_gives_the_numbers_it_gave() -> None:
    evaluation, expected = open_evaluation(FORMAT_1 / "evaluation"), EXPECTED["evaluation"]
    assert [[answer.tokens for answer in problem.answers] for problem in evaluation.problems] == expected["tokens"]
    assert (evaluation.avg()[0], evaluation.label) == (expected["avg"], expected["label"])


def test_evaluation_of_format_2_with_samples_gives_the_numbers_it_gave() -> None:
    evaluation = open_evaluation(FORMAT_2 / "evaluation")
    expected = json.loads((FORMAT_2 / "expected.json").read_text())["evaluation"]
    assert evaluation.correct.tolist() == expected["correct"]
    assert [[answer.tokens for answer in problem.answers] for problem in evaluation.problems] == expected["tokens"]
    assert (evaluation.avg()[0], evaluation.label) == (expected["avg"], expected["label"])
    assert evaluation.pass_at()["mean"].tolist() == expected["pass"]
    assert evaluation.manifest.problems.count == 3


def test_response_rows_alone_of_format_1_keep_their_places() -> None:
    """Such a run kept no token ids of its prompts; the first response rows are found all the same."""
    from layerlens.results.schema import upgraded

    whole = ll.open_run(FORMAT_1 / "run").sample(0)
    old = whole.drop_vars(["text_token_id", "text_sample", "response_start", "weight"]).drop_dims("text_token", errors="ignore")
    rows = np.flatnonzero(old["in_response"].values)
    new = upgraded(old.isel(token=rows).assign_attrs(rows="response"))
    assert new["response_start"].values.tolist() == whole["response_start"].values.tolist()
    assert "text_token_id" not in new.coords
    kept = upgraded(old.assign_attrs(rows="all"))
    assert kept["text_token_id"].values.tolist() == whole["text_token_id"].values.tolist()
    assert kept["response_start"].values.tolist() == whole["response_start"].values.tolist()


def test_folder_of_format_1_is_not_continued(qwen: ll.LensModel, tmp_path: Path) -> None:
    shutil.copytree(FORMAT_1 / "run", tmp_path / "run")
    with pytest.raises(RunError, match="made by an earlier layerlens: it can be read, but not continued"):
        ll.analyze(qwen, [ll.Sample(random_ids(5), 2)], out=tmp_path / "run")
