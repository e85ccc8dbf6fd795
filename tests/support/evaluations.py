"""Problems for the tiny random model, and a check that needs no mathematics."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import layerlens as ll
from layerlens.evaluate import Answer, Evaluation, Problem
from layerlens.storage.manifest import EvaluationConfig, EvaluationManifest, ModelInfo, SampleSet, SamplingSettings
from tests.support.tiny_models import random_ids


def some_problems(count: int = 5) -> list[ll.Sample]:
    """Prompts of different lengths."""
    return [ll.Sample(random_ids(3 + i % 4, i), 3 + i % 4, id=f"p{i}", ground_truth=str(i)) for i in range(count)]


def even_words(completions: list[str], ground_truth: list[str], **columns: Any) -> list[float]:
    """1 for an answer with an even number of words."""
    assert len(completions) == len(ground_truth)
    return [float(len(text.split()) % 2 == 0) for text in completions]


def evaluated(rights: list[int], answers: int, first: int = 0) -> Evaluation:
    """An evaluation in which so many of each problem's answers are right."""
    problems = [
        Problem(str(first + i), "7", tuple(Answer("", 1, True, float(number < right)) for number in range(answers)))
        for i, right in enumerate(rights)
    ]
    config = EvaluationConfig("transformers", SamplingSettings(8, 1.0, 1.0, 0), "reward")
    manifest = EvaluationManifest(
        model=ModelInfo("m", "", "float32", n_layers=12), config=config, problems=SampleSet(len(problems), ""), task="toy"
    )
    return Evaluation(tuple(problems), manifest)


def sampled(found: Evaluation, **settings: float) -> Evaluation:
    """The evaluation as if its answers had been sampled with other settings."""
    config = found.manifest.config
    return replace(found, manifest=replace(found.manifest, config=replace(config, generate=replace(config.generate, **settings))))
