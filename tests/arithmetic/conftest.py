from __future__ import annotations

import pytest
from transformers import PreTrainedTokenizerBase

from layerlens.arithmetic.tokenizer import build_tokenizer


@pytest.fixture(scope="session")
def built_tokenizer() -> PreTrainedTokenizerBase:
    """The task's tokenizer, as the code builds it (seconds, so once)."""
    return build_tokenizer()
