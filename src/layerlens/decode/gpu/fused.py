"""The backend "triton": one kernel computes logits and reduces them in registers, for entropy, log-probability and agreement."""

from __future__ import annotations

import torch

from layerlens.decode.gpu.launch import PartBuffers, kernels, launching_on, logit_arguments
from layerlens.decode.gpu.product import LOW_PRECISION
from layerlens.decode.moments import PartialSums
from layerlens.decode.request import ReadoutRequest

PART = 2048
"""Tokens that one program of the kernel reduces. Fixed, so that the number of rows does not change the result of a row."""


def fused_backend(request: ReadoutRequest) -> PartialSums:
    """Computes a request over the whole vocabulary. Logits never leave the registers."""
    vectors, weight = request.all_vectors, request.unembedding.weight
    if vectors.dtype == torch.float64:
        vectors = vectors.float()
    n, d_model = vectors.shape
    exact = vectors.dtype == weight.dtype in LOW_PRECISION  # products of two 16-bit numbers are exact in float32
    capability = torch.cuda.get_device_capability(vectors.device) if vectors.device.type == "cuda" else (0, 0)
    rows, tokens, depth, warps, stages = tiling(request, exact, capability)
    buffers = PartBuffers(request, -(-request.vocabulary // PART))
    with launching_on(vectors.device):
        kernels().fused_rows[(-(-n // rows) * buffers.parts,)](
            vectors, weight, buffers.sums, buffers.ids, buffers.targets, *logit_arguments(request.unembedding),
            n, request.vocabulary, d_model, vectors.stride(0), *weight.stride(), PART=PART,
            UPCAST=not exact or kernels().INTERPRETED, EVEN=d_model % depth == 0,
            ROWS=rows, TOKENS=tokens, DEPTH=depth, num_warps=warps, num_stages=stages,
        )  # fmt: skip
        return buffers.combined()


def tiling(request: ReadoutRequest, exact: bool, capability: tuple[int, int]) -> tuple[int, int, int, int, int]:
    """ROWS, TOKENS, DEPTH, warps and stages of the kernel, for a GPU of this compute capability.

    The tiles are as large as registers allow (tests/decode/gpu/test_compilation.py asks the compiler). They are fixed, because
    tiles found by timing would change rounding from run to run.
    """
    if not exact:
        return 64, 128, 32, 8, 2
    large = capability == (9, 0) and request.unembedding.is_bare_product and not request.agrees
    return (128, 256, 64, 8, 3) if large else (128, 128, 64, 8, 3)
