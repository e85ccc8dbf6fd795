"""The tokenizer of a folder or a hub name."""

from __future__ import annotations

from pathlib import Path
from typing import Any


def read_tokenizer(source: str | Path, **options: Any) -> Any:
    """Reads a tokenizer with transformers, which takes the options, and tries it: one with settings of wrong types fails at its first text.

    Raises whatever either raises.
    """
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(source, **options)
    tokenizer.decode(tokenizer("a")["input_ids"])
    return tokenizer
