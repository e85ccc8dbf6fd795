"""Float32 products of vectors and weights of any dtype on a GPU, whole or chunk by chunk in a workspace of bounded size."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

import torch
from jaxtyping import Float
from torch import Tensor

WORKSPACE_ELEMENTS = 1 << 24
"""float32 numbers in the workspace, 64 MiB. The product of a chunk takes at most this many, and a float32 copy of the chunk's weights,
if one is needed, at most this many again."""

TILE = 4096
"""Logits of a row that one program of the kernel `reduce_rows` reads. A chunk is made of whole tiles, or of one smaller tile."""

LOW_PRECISION = (torch.bfloat16, torch.float16)


class ChunkedProduct:
    """Float32 products of vectors with chunks of the unembedding, in a workspace that every chunk uses again.

    16-bit weights are multiplied with vectors of their own dtype: products of two such numbers are exact in float32, in which they are
    summed. Float32 vectors are split into three bfloat16 terms that sum to them exactly (`_exact_terms`). All other pairs of dtypes
    are multiplied in float32, never in TF32.
    """

    def __init__(self, vectors: Float[Tensor, "n d"], weight: Float[Tensor, "vocabulary d"]):
        self.weight, self.terms = weight, _exact_terms(vectors, weight)
        buffers = min(2, len(self.terms))
        size = WORKSPACE_ELEMENTS // (buffers * max(1, len(vectors)))
        if self.terms[0].dtype != weight.dtype:
            size = min(size, WORKSPACE_ELEMENTS // weight.shape[1])
        size = max(64, size)
        self.chunk = min(size // TILE * TILE or 1 << size.bit_length() - 1, weight.shape[0])
        self.buffers = [weight.new_empty(len(vectors) * self.chunk, dtype=torch.float32) for _ in range(buffers)]

    def __call__(self, start: int, stop: int) -> Float[Tensor, "n chunk"]:
        """The product with the weights of tokens start…stop-1, at most `chunk` of them. The next call overwrites it."""
        buffers = [buffer[: len(self.terms[0]) * (stop - start)].view(-1, stop - start) for buffer in self.buffers]
        return _sum_products(buffers, self.terms, self.weight[start:stop])


def float32_product(vectors: Float[Tensor, "n d"], weight: Float[Tensor, "chunk d"]) -> Float[Tensor, "n chunk"]:
    """The float32 product of vectors and weights in memory of its own, with the precision of `ChunkedProduct`."""
    terms = _exact_terms(vectors, weight)
    buffers = [weight.new_empty((len(vectors), len(weight)), dtype=torch.float32) for _ in terms[:2]]
    return _sum_products(buffers, terms, weight)


def _sum_products(buffers: list[Float[Tensor, "n chunk"]], terms: list[Float[Tensor, "n d"]], weight: Float[Tensor, "chunk d"]) -> Tensor:
    """The sum of the products of all terms, in the first buffer. The second buffer is needed if there is more than one term."""
    weight = weight.to(terms[0].dtype).t()
    _multiply(terms[0], weight, buffers[0])
    for term in terms[1:]:
        _multiply(term, weight, buffers[1])
        buffers[0] += buffers[1]
    return buffers[0]


def _multiplies_low_precision(device: torch.device) -> bool:
    """Whether torch computes the float32 product of 16-bit matrices on the device (torch 2.8 or later).

    On a CPU, on which only tests call this, `_multiply` makes the numbers float32 first.
    """
    if device.type == "cpu":
        return True
    capable = device.type == "cuda" and torch.cuda.get_device_capability(device) >= (8, 0)
    return capable and hasattr(torch.ops.aten.mm, "dtype_out")


def _exact_terms(vectors: Float[Tensor, "n d"], weight: Float[Tensor, "vocabulary d"]) -> list[Float[Tensor, "n d"]]:
    """Splits `vectors` into terms that sum to them exactly; each term has the weights' dtype if possible.

    If that is impossible, the only term is `vectors` in float32. Float64 vectors are rounded to float32.
    """
    low = weight.dtype in LOW_PRECISION and _multiplies_low_precision(weight.device)
    if low and vectors.dtype == weight.dtype:
        return [vectors]
    vectors = vectors.float()
    if not low or weight.dtype == torch.float16:  # float16 has too few exponents to hold the terms of a float32
        return [vectors]
    terms = []
    for _ in range(3):  # three times 8 significant bits are the 24 of a float32
        terms.append(vectors.to(weight.dtype))
        vectors = vectors - terms[-1]
    return terms


def _multiply(a: Float[Tensor, "n d"], b: Float[Tensor, "d chunk"], out: Float[Tensor, "n chunk"]) -> None:
    """Writes the float32 product a @ b to `out`. A GPU's matrix unit takes 16-bit numbers as they are."""
    if a.dtype in LOW_PRECISION and a.device.type != "cpu":
        torch.mm(a, b, out_dtype=torch.float32, out=out)
    else:
        with _no_tf32():
            torch.mm(a.float(), b.float(), out=out)


@contextmanager
def _no_tf32() -> Iterator[None]:
    """Inside, float32 products are computed in float32, never in TF32.

    torch has two settings for this and raises RuntimeError if a program uses both, so the one that the program uses is changed.
    """
    try:
        before, off, put = torch.get_float32_matmul_precision(), "highest", torch.set_float32_matmul_precision
    except RuntimeError:
        matmul = torch.backends.cuda.matmul
        before, off, put = matmul.fp32_precision, "ieee", partial(setattr, matmul, "fp32_precision")
    if before == off:
        yield
        return
    put(off)
    try:
        yield
    finally:
        put(before)
