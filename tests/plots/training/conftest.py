from __future__ import annotations

import pytest

from layerlens.results import TrainingLog, open_training
from tests.support.training_folders import write_training


@pytest.fixture(scope="module")
def log(tmp_path_factory: pytest.TempPathFactory) -> TrainingLog:
    return open_training(write_training(tmp_path_factory.mktemp("out") / "bupo"))


@pytest.fixture(scope="module")
def baseline(tmp_path_factory: pytest.TempPathFactory) -> TrainingLog:
    """A training without an internal phase."""
    return open_training(write_training(tmp_path_factory.mktemp("out") / "grpo", layer=None, seed=1))


@pytest.fixture(scope="module")
def deep(tmp_path_factory: pytest.TempPathFactory) -> TrainingLog:
    return open_training(write_training(tmp_path_factory.mktemp("out") / "deep", layers=36, layer=6, internal=30, steps=300))
