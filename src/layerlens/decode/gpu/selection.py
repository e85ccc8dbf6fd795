"""Which of the two GPU backends computes a request: the one that is named, or the one that is expected to be faster."""

from __future__ import annotations

from layerlens.decode.gpu import launch
from layerlens.decode.gpu.product import LOW_PRECISION
from layerlens.decode.request import ReadoutRequest
from layerlens.errors import SelectionError

LARGEST_FUSED_D = 1024
"""Largest d_model for which "auto" is "triton". The product of a shorter row takes too little time to hide the writing and reading of
its logits."""


def gpu_backend(request: ReadoutRequest, name: str = "auto") -> str:
    """ "workspace" or "triton": the one that is named, or for "auto" the one that is expected to be faster for this request.

    Raises SelectionError if the one that is named cannot compute the request.
    """
    device, weight = request.hidden.device, request.unembedding.weight
    in_registers = not (request.kl or request.kl_from or request.top_k or request.second)
    kernels = launch.kernels_run(device)
    if name == "auto":
        narrow = weight.dtype == request.hidden.dtype in LOW_PRECISION and weight.shape[1] <= LARGEST_FUSED_D
        return "triton" if in_registers and narrow and kernels else "workspace"
    if device.type == "cpu" and not kernels:
        raise SelectionError(f"the readout backend {name!r} cannot be used for this model on cpu: it needs a GPU; choose 'auto'")
    if name == "triton" and not kernels:
        raise SelectionError(
            "the readout backend 'triton' needs Triton, a C compiler and a GPU of compute capability 8.0 or more; choose 'workspace'"
        )
    if name == "triton" and not in_registers:
        raise SelectionError("the readout backend 'triton' gives entropy, logp and agrees; choose 'workspace' for KL and all else")
    return name
