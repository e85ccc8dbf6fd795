"""Which rows of a sample are decoded when not all are, and how many rows each of them stands for.

Response rows and the others are two strata. Within each, the rows drawn are those whose hash is smallest: a simple random
sample without replacement, so that the mean of the rows drawn is unbiased for the mean of all, whatever their order or
autocorrelation. The hash sees the sample's number and the row's position and nothing else: a row's place in the queue is the
same in any batch, process or round, on any model, and whatever the length of the response; and of two draws from one
sample the larger holds the smaller.
"""

from __future__ import annotations

import hashlib

import numpy as np
from jaxtyping import Bool, Float, Int

Array = np.ndarray


def draw_rows(
    rows: Int[Array, " rows"], in_response: Bool[Array, " rows"], most: int, index: int
) -> tuple[Int[Array, " drawn"], Float[Array, " drawn"]]:
    """At most `most` of the rows (positions) that predict a response token and as many of the others, of sample number `index`.

    Returns the rows drawn, in order, and the weight of each: rows of its stratum / rows drawn from it. So the weights of a
    stratum add up to its rows.
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
