"""Test set-up: offline, one thread, headless, and every jaxtyping annotation checked at run time."""

from __future__ import annotations

import os
from pathlib import Path

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

# what is compiled and timed for this machine is kept between test runs, apart from the user's own
os.environ.setdefault("LAYERLENS_CACHE", str(Path(__file__).parents[1] / ".pytest_cache" / "layerlens"))

import torch
from jaxtyping import install_import_hook

if not torch.cuda.is_available():
    # Triton reads this when it is imported: without a card its kernels are interpreted on the CPU, as a card would run them
    os.environ["TRITON_INTERPRET"] = "1"

ROOMS = Path(__file__).parents[1] / "src" / "layerlens"
# all but the settings: their parent class, TRL's, does not keep to its own annotations
CHECKED = [name for name in (path.stem for path in ROOMS.iterdir()) if name not in ("__init__", "__main__", "__pycache__", "train")]
CHECKED_IN_TRAIN = [path.stem for path in (ROOMS / "train").glob("*.py") if path.stem not in ("__init__", "config")]
install_import_hook(
    [f"layerlens.{name}" for name in CHECKED] + [f"layerlens.train.{name}" for name in CHECKED_IN_TRAIN], "beartype.beartype"
)

import pytest
from hypothesis import settings

from layerlens.models import LensModel
from tests.support.tiny_models import ARCHITECTURES, tiny_model, tiny_tokenizer

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
