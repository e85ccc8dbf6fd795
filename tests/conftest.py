"""Test set-up: offline, one thread, headless, and every jaxtyping annotation checked at run time."""

from __future__ import annotations

import os

os.environ.update(
    HF_HUB_OFFLINE="1",
    HF_HUB_DISABLE_TELEMETRY="1",
    HF_DATASETS_OFFLINE="1",
    TOKENIZERS_PARALLELISM="false",
    MPLBACKEND="Agg",
    OMP_NUM_THREADS="1",
    HF_HUB_DISABLE_PROGRESS_BARS="1",
    TQDM_DISABLE="1",
)

from jaxtyping import install_import_hook

install_import_hook("layerlens", "beartype.beartype")

import pytest
import torch
from hypothesis import settings

from layerlens.lens import LensModel
from tests.tiny import ARCHITECTURES, tiny_model, tiny_tokenizer

torch.set_num_threads(1)
settings.register_profile("layerlens", deadline=None, max_examples=40, derandomize=True)
settings.load_profile("layerlens")


@pytest.fixture(scope="session", params=ARCHITECTURES)
def architecture(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(scope="session")
def lens(architecture: str) -> LensModel:
    return LensModel.wrap(tiny_model(architecture), tiny_tokenizer())


@pytest.fixture(scope="session")
def qwen() -> LensModel:
    return LensModel.wrap(tiny_model("qwen3"), tiny_tokenizer(), name="tiny-random")
