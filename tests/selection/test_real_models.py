"""Choice and comparison on real models: what they recommend can be trained, and the families differ as the paper says."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

import layerlens as ll
from layerlens.selection.comparison import compare_runs
from layerlens.types import READOUT_METRICS

pytestmark = pytest.mark.real
FOLDER = os.environ.get("LAYERLENS_REAL_MODELS")

PROBLEMS = [
    "What is 17 + 25?",
    "Simplify (x^2 - 1) / (x - 1).",
    "How many prime numbers lie between 10 and 30?",
    "A circle has a radius of 3. What is its area?",
    "Solve 2x + 6 = 20 for x.",
    "What is the greatest common divisor of 84 and 36?",
    "A fair coin is tossed three times. How likely are three heads?",
    "What is the sum of the first ten positive integers?",
]


@pytest.mark.skipif(not FOLDER, reason="LAYERLENS_REAL_MODELS names no folder of real models")
def test_real_models_get_a_layer_that_can_be_trained_and_settle_in_the_papers_order() -> None:
    runs = []
    for name in ("smollm2-135m-instruct", "qwen2.5-coder-0.5b-instruct"):
        model = ll.load(Path(str(FOLDER)) / name, dtype="float32")
        prompts = ll.read_prompts(PROBLEMS, model)
        sites = ("resid_pre", "ffn_in", "ffn_out", "resid_post")
        measured = {"sites": sites, "metrics": READOUT_METRICS, "rows": "response", "generate": ll.Generation(16, seed=0)}
        run = ll.analyze(model, prompts, norm="final", **measured)
        choice = ll.select_layer(run)
        assert choice.layer is not None
        assert (choice.outcome, choice.is_usable) == ("layer", True), "an answer that the data give, not an end of the model"
        assert choice.layer < run.n_layers
        boundary = choice.candidates[(choice.candidates["rule"] == "boundary") & choice.candidates["chosen"]]
        assert boundary["open"].item(), "on real models the exploration has no end under norm final"
        runs.append(run)
        if name.startswith("smollm2"):
            raw = ll.select_layer(ll.analyze(model, prompts, norm="none", **measured))
            assert raw.layer is None
            assert raw.diagnosis is not None
            assert raw.diagnosis.startswith("norm none does not read this model: at its last layer it agrees with the final policy on")
    found = compare_runs(runs)
    assert found.table["late_share"][0] > found.table["late_share"][1]
    assert any(text.startswith("smollm2-135m-instruct settles later than qwen2.5-coder-0.5b-instruct") for text in found.verdict)
