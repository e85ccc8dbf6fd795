"""`layerlens demo`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import layerlens as ll
from layerlens.models import generate_responses
from layerlens.storage.bundled import bundled_prompts
from tests.support.command_line import Layerlens


def test_the_demo_samples_once_and_reads_the_same_texts_under_both_norms(
    layerlens: Layerlens, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sampled: list[str] = []

    def counted(model: Any, samples: Any, *more: Any) -> Any:
        sampled.extend(f"{model.name} {sample.id}" for sample in samples if not sample.has_response)
        return generate_responses(model, samples, *more)

    monkeypatch.setattr("layerlens.analysis.sampling.generate_responses", counted)
    monkeypatch.setattr("layerlens.cli.demo.draw_figures", lambda *_: ([], []))
    done = layerlens("demo", "--samples", 2, "--out", tmp_path, "--json")
    assert done.code == 0, done.err
    assert len(sampled) == len(set(sampled)) == 4, "two problems, two models"
    for name in ("tiny-qwen3", "tiny-llama"):
        run, normed = (ll.open_run(tmp_path / "runs" / folder) for folder in (name, f"{name}-final"))
        assert (run.norm, normed.norm) == ("none", "final")
        for coord in ("sample", "sample_id", "sample_text", "ground_truth", "position", "token_id", "token_text", "in_response"):
            np.testing.assert_array_equal(run.data[coord].values, normed.data[coord].values)
        assert not run.data["entropy"].equals(normed.data["entropy"])
    lens = ll.load("tiny-llama", dtype="float32")
    anew = ll.analyze(lens, ll.read_prompts(bundled_prompts(), lens, limit=2), generate=ll.Generation(256, seed=0), norm="final")
    np.testing.assert_allclose(normed.data["entropy"], anew.data["entropy"], atol=1e-4)
    np.testing.assert_array_equal(normed.data["token_id"], anew.data["token_id"])
