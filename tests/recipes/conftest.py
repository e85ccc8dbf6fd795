from __future__ import annotations

import pytest
from recipes.tiny_models.tokenizer import build_tokenizer
from transformers import PreTrainedTokenizerBase


@pytest.fixture(scope="session")
def built_tokenizer() -> PreTrainedTokenizerBase:
    """The tokenizer of the bundled models, built by the recipe (which takes seconds, so once)."""
    return build_tokenizer()
