"""Float32 logits of vectors and weights of any dtype, on a GPU: a chunk of the vocabulary at a time, in a workspace of bounded size."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

import torch
from jaxtyping import Float
from torch import Tensor

WORKSPACE_ELEMENTS = 1 << 24
"""float32 numbers that the logits of a chunk may take, and its weights again where they have to be made float32: 64 MiB."""

TILE = 4096
"""Logits of a row that one program of the reduction reads; chunks are whole tiles, or one smaller one."""

LOW_PRECISION = (torch.bfloat16, torch.float16)


class Product:
    """Float32 products of vectors with chunks of the unembedding, in a workspace that every chunk uses again.

    16-bit weights are multiplied as they are with vectors of their dtype: products of two such numbers are exact in float32,
    which sums them. Float32 vectors are cut into three bfloat16 ones that add up to them exactly. Everything else is multiplied
    in float32, never in TF32.
    """

    def __init__(self, vectors: Float[Tensor, "n d"], weight: Float[Tensor, "vocabulary d"]):
        self.weight, self.terms = weight, _terms(vectors, weight)
        spaces = min(2, len(self.terms))
        size = WORKSPACE_ELEMENTS // (spaces * max(1, len(vectors)))
        if self.terms[0].dtype != weight.dtype:
            size = min(size, WORKSPACE_ELEMENTS // weight.shape[1])
        size = max(64, size)
        self.chunk = min(size // TILE * TILE or 1 << size.bit_length() - 1, weight.shape[0])
        self.space = [weight.new_empty(len(vectors) * self.chunk, dtype=torch.float32) for _ in range(spaces)]

    def __call__(self, start: int, stop: int) -> Float[Tensor, "n chunk"]:
        spaces = [space[: len(self.terms[0]) * (stop - start)].view(-1, stop - start) for space in self.space]
        return _fill(spaces, self.terms, self.weight[start:stop])


def product(vectors: Float[Tensor, "n d"], weight: Float[Tensor, "chunk d"]) -> Float[Tensor, "n chunk"]:
    """The same of one chunk of any size, in memory of its own."""
    terms = _terms(vectors, weight)
    return _fill([weight.new_empty((len(vectors), len(weight)), dtype=torch.float32) for _ in terms[:2]], terms, weight)


def _fill(spaces: list[Float[Tensor, "n chunk"]], terms: list[Float[Tensor, "n d"]], weight: Float[Tensor, "chunk d"]) -> Tensor:
    """The sum of the products of all terms, in the first space; the second is needed where there is more than one."""
    weight = weight.to(terms[0].dtype).t()
    _multiply(terms[0], weight, spaces[0])
    for term in terms[1:]:
        _multiply(term, weight, spaces[1])
        spaces[0] += spaces[1]
    return spaces[0]


def _multiplies_low_precision(device: torch.device) -> bool:
    """Whether torch gives the float32 product of 16-bit matrices there (since torch 2.8); `_multiply` stands in for it on a CPU."""
    if device.type == "cpu":
        return True
    capable = device.type == "cuda" and torch.cuda.get_device_capability(device) >= (8, 0)
    return capable and hasattr(torch.ops.aten.mm, "dtype_out")


def _terms(vectors: Float[Tensor, "n d"], weight: Float[Tensor, "vocabulary d"]) -> list[Float[Tensor, "n d"]]:
    """Vectors to multiply with the weights that add up to these: of the weights' dtype where that can be, else these in float32."""
    low = weight.dtype in LOW_PRECISION and _multiplies_low_precision(weight.device)
    if low and vectors.dtype == weight.dtype:
        return [vectors]
    vectors = vectors.float()
    if not low or weight.dtype == torch.float16:  # which has too few exponents for this
        return [vectors]
    terms = []
    for _ in range(3):  # of 8 significant bits each
        terms.append(vectors.to(weight.dtype))
        vectors = vectors - terms[-1]
    return terms


def _multiply(a: Float[Tensor, "n d"], b: Float[Tensor, "d chunk"], out: Float[Tensor, "n chunk"]) -> None:
    """a @ b in float32. 16-bit numbers are made float32 by the GPU's matrix unit, on a CPU before."""
    if a.dtype in LOW_PRECISION and a.device.type != "cpu":
        torch.mm(a, b, out_dtype=torch.float32, out=out)
    else:
        with _no_tf32():
            torch.mm(a.float(), b.float(), out=out)


@contextmanager
def _no_tf32() -> Iterator[None]:
    """Float32 products in float32. torch has two ways to say so, and refuses programs that use both: the program's own is used."""
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
