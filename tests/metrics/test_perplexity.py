"""Perplexity from a mean log-probability."""

from __future__ import annotations

import numpy as np
import pytest

from layerlens.metrics.perplexity import perplexity


def test_perplexity_of_guessing_is_the_vocabulary_and_never_overflows_loudly() -> None:
    assert perplexity(np.array([-np.log(512), -1000.0])).tolist() == [pytest.approx(512), np.inf]
