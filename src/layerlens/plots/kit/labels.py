"""Text on a figure: token texts and model names, whatever characters they hold, and names of metrics."""

from __future__ import annotations

import math
import textwrap
import unicodedata
from collections.abc import Sequence
from functools import lru_cache

from matplotlib import font_manager, rcParams

from layerlens.types import METRIC_INFO

FALLBACK_FONTS = (
    "DejaVu Sans", "Noto Sans CJK SC", "Noto Sans CJK JP", "Noto Sans SC", "Source Han Sans SC", "WenQuanYi Micro Hei", "WenQuanYi Zen Hei",
    "PingFang SC", "Hiragino Sans", "Microsoft YaHei", "Arial Unicode MS", "Noto Sans", "Noto Sans Symbols2", "Noto Emoji", "Symbola",
)  # fmt: skip
"""Fonts for characters that the chosen font lacks; those that are not installed are skipped."""

VISIBLE = {" ": "␣", "\n": "⏎", "\t": "⇥", "\u00a0": "⍽"}
"""Signs for blanks in token labels."""
LONGEST = 14
"""Characters of a token label."""


def families() -> list[str]:
    """The fonts to draw with: the caller's, then those of FALLBACK_FONTS that are installed."""
    chosen = list(rcParams["font.family"])
    return chosen + [name for name in _installed() if name not in chosen]


def plain(text: str) -> str:
    """Text as matplotlib shows it letter by letter: `$` starts no formula, and what no font can draw is a hex escape."""
    return "".join(_pieces(text))


def numbered(names: Sequence[str]) -> list[str]:
    """The names as `plain` text; names that come more than once get their number in the list."""
    shown = [plain(name) for name in names]
    return [f"{name} #{number}" if shown.count(name) > 1 else name for number, name in enumerate(shown, 1)]


def token_label(text: str, longest: int = LONGEST) -> str:
    """A token with its blanks visible, about `longest` characters at most: the middle of a longer one is left out."""
    if text == "":
        return "∅"
    if len(text) > 3 and len(set(text)) == 1:
        return plain(f"{VISIBLE.get(text[0], text[0])}×{len(text)}")
    pieces = _pieces("".join(VISIBLE.get(char, char) for char in text))
    if sum(map(len, pieces)) <= longest:
        return "".join(pieces)
    head, tail = _fitting(pieces, longest // 2), _fitting(pieces[::-1], (longest - 1) // 2)[::-1]
    return "".join([*head, "…", *tail]) if len(head) + len(tail) < len(pieces) else "".join(pieces)


def wrapped(text: str, inches: float, size: float) -> str:
    """Breaks text of `size` points into lines of at most `inches`; line breaks that it has are kept."""
    width = max(12, int(inches * 72 / (0.53 * size)))
    lines = [textwrap.wrap(line, width, break_on_hyphens=False, break_long_words=False) for line in text.splitlines()]
    return "\n".join(part for line in lines for part in line)


def power(value: float) -> str:
    """A number on a logarithmic axis, without a formula: large powers of ten as 10⁶."""
    exponent = round(math.log10(value))
    if abs(exponent) >= 4 and math.isclose(value, 10.0**exponent):
        return "10" + str(exponent).translate(str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹"))
    return f"{value:g}"


def metric_label(name: str, mean: bool = True) -> str:
    """Long name and unit, for an axis or a colour bar."""
    long_name, unit = METRIC_INFO[name]
    text = f"mean {long_name}" if mean and "perplexity" not in name else long_name
    return text if unit == "1" else f"{text} [{unit}]"


def _pieces(text: str) -> list[str]:
    """Each character as drawn: as it is, or its escape."""
    pieces: list[str] = []
    for char in text:
        hidden = not char.isprintable() or (unicodedata.combining(char) and not pieces)
        pieces.append(_escape(char) if hidden or not _drawable(char) else r"\$" if char == "$" else char)
    return pieces


def _fitting(pieces: list[str], longest: int) -> list[str]:
    """As many of the first pieces, but at least one, as have together at most `longest` characters."""
    count = 1
    while count < len(pieces) and sum(map(len, pieces[: count + 1])) <= longest:
        count += 1
    return pieces[:count]


def _escape(char: str) -> str:
    code = ord(char)
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:x}"


def _drawable(char: str) -> bool:
    return char.isascii() or any(ord(char) in _charmap(path) for path in _files())


def _files() -> list[str]:
    # findfont caches its answers; for a font that is not installed it gives matplotlib's default
    return [font_manager.findfont(font_manager.FontProperties(family=[name])) for name in families()]


@lru_cache(maxsize=1)
def _installed() -> tuple[str, ...]:
    there = {font.name for font in font_manager.fontManager.ttflist}
    return tuple(name for name in FALLBACK_FONTS if name in there)


@lru_cache(maxsize=64)
def _charmap(path: str) -> frozenset[int]:
    return frozenset(font_manager.get_font(path).get_charmap())
