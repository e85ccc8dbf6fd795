from __future__ import annotations

import pytest

from layerlens.results import Run
from tests.support.plots import rise_and_fall


@pytest.fixture(scope="module")
def run() -> Run:
    return rise_and_fall(12, name="Qwen3-0.6B")


@pytest.fixture(scope="module")
def single() -> Run:
    """A run of one sample."""
    return rise_and_fall(12, samples=1)
