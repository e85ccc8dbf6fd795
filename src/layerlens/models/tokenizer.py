"""The tokenizer of a folder or a hub name."""

from __future__ import annotations

import warnings
from contextlib import suppress
from pathlib import Path
from typing import Any

MISTRALS_OWN = "MistralCommonBackend"
"""The class of a tokenizer that mistral-common runs."""


def read_tokenizer(source: str | Path, **options: Any) -> Any:
    """Reads a tokenizer with transformers, which takes the options, and tries it: one with settings of wrong types fails at its first text.

    Where mistral-common is installed, transformers reads Mistral's own file by it, and knows no chat template then: `tokenizer.json` is
    read in its place, or a warning given.

    Raises whatever either raises.
    """
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(source, **options)
    if type(tokenizer).__name__ == MISTRALS_OWN:
        with suppress(Exception):  # there is no other file, or an older transformers does not know the option
            tokenizer = AutoTokenizer.from_pretrained(source, mistral_format=False, **options)
    if type(tokenizer).__name__ == MISTRALS_OWN:
        warnings.warn(
            f"{source} has a tokenizer of mistral-common alone, without a chat template: prompts are read as they stand", stacklevel=2
        )
    tokenizer.decode(tokenizer("a")["input_ids"])
    return tokenizer
