"""Numbers as the page carries them: rounded to the digits that are shown, and long arrays compressed, in base64."""

from __future__ import annotations

import base64
import math
import zlib
from collections.abc import Iterable
from typing import Any

import numpy as np
from jaxtyping import Float, Shaped

Array = np.ndarray

STEPS = 60_000
"""Most steps from 0 to the largest value: what two bytes hold."""
MOST_DECIMALS = 2
SMALL, SMALL_DECIMALS = 2.0, 3
"""Numbers up to 2 (shares, cosines, divergences in bits) are rounded to three decimals."""


def plain(value: Any, digits: int = 6) -> float | None:
    """A number with so many significant digits, ready for JSON; None if it is not finite."""
    number = float(value)
    return float(f"{number:.{digits}g}") if math.isfinite(number) else None


def plain_list(values: Iterable[Any]) -> list[Any]:
    """An array of any number of dimensions as nested lists of `plain` numbers."""
    return [plain_list(value) if np.ndim(value) else plain(value) for value in values]


def decimals_of(values: Shaped[Array, "..."]) -> int:
    """Digits after the point to which an array is rounded: 3 for small numbers, else 2, or fewer if two bytes cannot hold
    them, and none for integers."""
    finite = np.abs(values[np.isfinite(values)])
    if np.issubdtype(values.dtype, np.integer):
        return 0
    largest = float(finite.max()) if finite.size else 0.0
    if largest <= SMALL:
        return SMALL_DECIMALS
    return int(np.clip(math.floor(math.log10(STEPS / largest)), 0, MOST_DECIMALS))


def packed(values: Shaped[Array, "..."], decimals: int) -> dict[str, Any]:
    """An array as whole numbers of 10^-decimals above its smallest, for `unpack` of the page.

    Returns:
        `n`, how many values there are; `w`, bytes of each (1, 2 or 4); `lo`, the smallest in steps; `d`, the decimals; and `z`, the bytes
        of all values, the lowest byte of each first, then the next, compressed by zlib and in base64. The largest number that `w` bytes
        hold stands for a value that is not finite.
    """
    array: Float[Array, " n"] = np.asarray(values, np.float64).ravel()
    known = np.isfinite(array)
    steps = np.rint(np.where(known, array, 0.0) * 10.0**decimals).astype(np.int64)
    low = int(steps[known].min()) if known.any() else 0
    above = steps - low
    reach = int(above[known].max()) if known.any() else 0
    width = next(width for width in (1, 2, 4, 8) if reach < 256**width - 1)
    codes = np.where(known, above, 256**width - 1 if width < 8 else 0).astype(f"<u{width}")
    planes = np.ascontiguousarray(codes.view(np.uint8).reshape(-1, width).T).tobytes()
    return {"n": array.size, "w": width, "lo": low, "d": decimals, "z": compressed(planes, 7)}


def compressed(content: bytes, level: int = 9) -> str:
    """Bytes compressed by zlib at a level, in base64."""
    return base64.b64encode(zlib.compress(content, level)).decode("ascii")
