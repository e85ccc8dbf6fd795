"""Problems for the tiny random model, and a check that needs no mathematics."""

from __future__ import annotations

from typing import Any

import layerlens as ll
from tests.support.tiny_models import random_ids


def some_problems(count: int = 5) -> list[ll.Sample]:
    """Prompts of different lengths."""
    return [ll.Sample(random_ids(3 + i % 4, i), 3 + i % 4, id=f"p{i}", ground_truth=str(i)) for i in range(count)]


def even_words(completions: list[str], ground_truth: list[str], **columns: Any) -> list[float]:
    """1 for an answer with an even number of words."""
    assert len(completions) == len(ground_truth)
    return [float(len(text.split()) % 2 == 0) for text in completions]
