"""Between text and token ids, for tokenizers as they are in the wild."""

from __future__ import annotations

import codecs
from collections.abc import Iterable, Mapping
from functools import lru_cache
from typing import Any

REPLACEMENT = "\ufffd"
"""The character that decoders put in place of bytes that are no UTF-8."""


def plain_ids(tokenizer: Any, text: str) -> list[int]:
    """Token ids of a text that no chat template has made, with the special tokens that the tokenizer puts in front (BOS).

    A text that begins with the BOS token gets no second one, and an EOS token that the tokenizer puts behind is left out, since the text
    goes on.
    """
    written = bool(tokenizer.bos_token) and text.startswith(tokenizer.bos_token)
    ids: list[int] = tokenizer(text, add_special_tokens=not written)["input_ids"]
    closed = len(ids) > 1 and ids[-1] == tokenizer.eos_token_id and not text.endswith(tokenizer.eos_token)
    return ids[:-1] if closed else ids


def token_texts(tokenizer: Any, token_ids: Iterable[int]) -> list[str]:
    """The text of each token by itself, none of it lost or replaced.

    Blanks in front and special tokens stand as they are. Bytes that are no valid UTF-8 by themselves are written as `<0xE2>`, and ids
    for which the tokenizer has no token, as models with a padded vocabulary may have, as `<151700>`. Without a tokenizer, ids alone.
    """
    return [str(token) if tokenizer is None else _token_text(tokenizer, token) for token in token_ids]


def _token_text(tokenizer: Any, token: int) -> str:
    piece = tokenizer.convert_ids_to_tokens(token) if 0 <= token < len(tokenizer) else None
    if piece is None:
        return f"<{token}>"
    text = str(tokenizer.decode([token], clean_up_tokenization_spaces=False))
    if REPLACEMENT in text:
        return _bytes_text(piece) or text
    return f" {text}" if piece.startswith("▁") and not text.startswith(" ") else text


def _bytes_text(piece: str) -> str | None:
    """The text of a byte-level piece, or of a byte of SentencePiece's fallback; None if the piece is neither."""
    if piece.startswith("<0x") and piece.endswith(">"):
        return piece
    alphabet = _byte_alphabet()
    if not all(char in alphabet for char in piece):
        return None
    return bytes(alphabet[char] for char in piece).decode("utf-8", _BYTES)


@lru_cache(maxsize=1)
def _byte_alphabet() -> Mapping[str, int]:
    """The byte that each letter of a byte-level vocabulary stands for: printable ones for themselves, the others from U+0100 on.

    Source: `bytes_to_unicode` of GPT-2 (Radford et al. 2019), which every byte-level BPE uses.
    """
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(256 + number): byte for number, byte in enumerate(others)}


def _write_bytes(error: UnicodeError) -> tuple[str, int]:
    assert isinstance(error, UnicodeDecodeError)
    return "".join(f"<0x{byte:02X}>" for byte in error.object[error.start : error.end]), error.end


_BYTES = "layerlens.bytes"
"""Name of the decoding errors' handler that writes bytes as `<0xE2>`."""
codecs.register_error(_BYTES, _write_bytes)
