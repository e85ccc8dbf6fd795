"""The rows of a sample that are decoded when not all are, and how many rows each of them stands for.

Response rows and other rows are two strata. Within each stratum the drawn rows are those with the smallest hashes: a simple
random sample without replacement, so the mean of the drawn rows is unbiased for the mean of all, whatever their order or
autocorrelation. The hash sees only the sample's number and the row's position: a row's rank is the same in any batch, process
or round, on any model, and at any length of the response; and of two draws from one sample the larger contains the smaller.
"""

from __future__ import annotations

import hashlib

import numpy as np
from jaxtyping import Bool, Float, Int

Array = np.ndarray


def draw_rows(
    rows: Int[Array, " rows"], in_response: Bool[Array, " rows"], most: int, index: int
) -> tuple[Int[Array, " drawn"], Float[Array, " drawn"]]:
    """Draws at most `most` of the rows that predict a response token, and at most `most` of the other rows, of sample `index`.

    `rows` are positions. Returns the drawn rows, in order, and the weight of each: rows of its stratum / rows drawn from that
    stratum. So the weights of a stratum add up to its number of rows.
    """
    drawn, weight = [], []
    for stratum in (rows[in_response], rows[~in_response]):
        first = np.sort(np.array(sorted(stratum.tolist(), key=lambda row: _key(index, row))[:most], dtype=np.int64))
        drawn.append(first)
        weight.append(np.full(len(first), len(stratum) / max(len(first), 1)))
    order = np.argsort(np.concatenate(drawn))
    return np.concatenate(drawn)[order], np.concatenate(weight)[order]


def _key(index: int, row: int) -> bytes:
    return hashlib.sha256(f"{index} {row}".encode()).digest()
