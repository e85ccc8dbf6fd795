"""Which backend computes a request: the one that is named, or the fastest one on this machine."""

from __future__ import annotations

import os
import platform
from collections.abc import Callable, Collection
from functools import cache, partial
from pathlib import Path
from typing import Literal, get_args

import torch

from layerlens.decode.cpu import native, products
from layerlens.decode.cpu.compiled import CompiledReducer
from layerlens.decode.cpu.torch_backend import torch_backend
from layerlens.decode.gpu.fused import fused_backend
from layerlens.decode.gpu.launch import kernels_run
from layerlens.decode.gpu.selection import gpu_backend
from layerlens.decode.gpu.workspace import workspace_backend
from layerlens.decode.moments import PartialSums
from layerlens.decode.request import NEEDS, SECOND_LOOK, ReadoutRequest, rows_at_once
from layerlens.decode.timing import fastest_backend
from layerlens.decode.unembedding import Unembedding
from layerlens.errors import SelectionError

BackendName = Literal[
    "auto",
    "torch",
    "torch-mm",
    "torch-onednn",
    "compile",
    "compile-mm",
    "compile-onednn",
    "native",
    "native-float32",
    "native-dot",
    "workspace",
    "triton",
]
"""All that `readout(backend=)` accepts: "auto"; the families "torch", "compile" and "native", each of which stands for its
fastest variant; and the concrete backends. Two concrete backends of a CPU joined by "+", as in "native-float32+torch-mm", are the
backend of large requests and the backend of small requests (WORTH_TIMING)."""

ENVIRONMENT_VARIABLE = "LAYERLENS_READOUT"
"""Environment variable that stands in for "auto"."""

WORTH_TIMING = 10**8
"""Multiplications (rows · d · V) of a request from which on "auto" and the families time their variants. Smaller requests always run in
"torch-mm", or in the first possible variant of the family."""

TIMED_STATES = 8
"""Stacked states in the request that `resolve_backend` times; with anchors, each state is compared with each anchor."""

Backend = Callable[[ReadoutRequest], PartialSums]

CPU_BACKENDS: dict[str, Backend] = {
    "torch-mm": partial(torch_backend, product=products.mm),
    "torch-onednn": partial(torch_backend, product=products.onednn),
    "compile-mm": partial(torch_backend, product=products.mm, reducer=CompiledReducer),
    "compile-onednn": partial(torch_backend, product=products.onednn, reducer=CompiledReducer),
    "native-float32": native.native_backend,
    "native-dot": partial(native.native_backend, dot=True),
}
"""The concrete backends of a CPU, named family-product. The torch ones run on every device."""

GPU_BACKENDS: dict[str, Backend] = {"workspace": workspace_backend, "triton": fused_backend}
"""The concrete backends of a GPU."""

REQUIREMENTS: dict[str, str] = {
    "torch-onednn": "it needs a CPU and a torch that was built with oneDNN; choose 'torch-mm'",
    "compile-onednn": "it needs a CPU and a torch that was built with oneDNN; choose 'compile-mm'",
    "native": "it needs a C++ compiler (c++, g++ or clang++), contiguous float32 or bfloat16 weights on a CPU and no soft-cap; "
    "choose 'torch'",
    "native-dot": "it needs what 'native' needs, a processor that multiplies bfloat16 pairs (AVX512_BF16), weights, vectors and anchors in "
    "bfloat16, and an even d_model; choose 'native-float32' or 'torch'",
}
REQUIREMENTS["native-float32"] = REQUIREMENTS["native"]
"""What a backend needs and the next step, by each name that can be impossible on a CPU."""


@torch.no_grad()
def resolve_backend(
    unembedding: Unembedding,
    dtype: torch.dtype,
    *,
    backend: str = "auto",
    want: Collection[str] = (),
    top_k: int = 0,
    rows: int = 4096,
) -> str:
    """The concrete backend that `backend` stands for on this machine, to compute a whole analysis with and to store with its results.

    "auto" and the families ("torch", "compile", "native") are resolved by timing on random vectors. The answer is kept in the
    cache that `readout` uses (docs/speed.md), so that every later call and process gets the same one. A concrete name is checked
    and returned. On a CPU "auto" leaves small requests to "torch-mm", so its answer may be a pair, "native-float32+torch-mm".

    Args:
        unembedding: the unembedding of the model, on the device where the readout is to run.
        dtype: dtype of the hidden vectors.
        backend: "auto", a family or a concrete backend. The environment variable LAYERLENS_READOUT stands in for "auto".
        want, top_k: what the analysis asks `readout` for.
        rows: hidden vectors that the analysis hands to `readout` in one call. At most as many are timed as go through the vocabulary
            together.

    Raises:
        SelectionError: the backend is unknown, or impossible for this model, device or choice of numbers.
    """
    vocabulary, d_model = unembedding.weight.shape
    device = unembedding.weight.device
    needed = {NEEDS[name] for name in want if name in NEEDS}
    anchors = [name for name in ("final", "reference") if name in needed]
    second = frozenset(want) & {*SECOND_LOOK}
    states = max(1, min(rows, TIMED_STATES))
    state_rows = max(1, min(rows // states, rows_at_once(unembedding, states + len(anchors), bool(second))))
    vectors = torch.randn(states * state_rows, d_model, generator=torch.Generator().manual_seed(0)).to(device, dtype)
    request = ReadoutRequest(
        unembedding,
        vectors,
        dict.fromkeys(anchors, vectors[:state_rows]),
        torch.zeros(len(vectors), dtype=torch.long, device=device) if "rank" in second else None,
        kl="kl" in want,
        kl_from="kl_from" in want,
        agrees="agrees" in want,
        top_k=min(top_k, vocabulary),
        second=second,
    )
    asked = os.environ.get(ENVIRONMENT_VARIABLE, "auto") if backend == "auto" else backend
    name = _resolve(request, asked)
    if "+" in asked:
        return asked
    return f"{name}+torch-mm" if asked == "auto" and name in CPU_BACKENDS and name != "torch-mm" else name


def choose_backend(request: ReadoutRequest, backend: str = "auto") -> Backend:
    """The function that computes a request: the concrete backend of that name, or what "auto" or a family stands for.

    Raises SelectionError if the backend is unknown, or cannot compute this request on this machine.
    """
    return {**CPU_BACKENDS, **GPU_BACKENDS}[_resolve(request, backend)]


def backends_for(request: ReadoutRequest) -> list[BackendName]:
    """The families of a CPU, or the backends of a GPU, that can compute a request on its device."""
    if request.hidden.device.type == "cuda":
        return ["workspace", "triton"] if kernels_run(request.hidden.device) else ["workspace"]
    families: list[BackendName] = ["torch", "compile", "native"]
    return [family for family in families if any(_possible(name, request) for name in _variants(family))]


@cache
def processor_name(device: torch.device) -> str:
    """The name of the processor that computes on a device, as its maker calls it: of the card for "cuda", else of the CPU."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, "") or platform.processor() or platform.machine()


def _resolve(request: ReadoutRequest, backend: str) -> str:
    name = backend if backend != "auto" else os.environ.get(ENVIRONMENT_VARIABLE, "auto")
    large = request.hidden.shape[0] * request.hidden.shape[1] * request.vocabulary >= WORTH_TIMING
    for_large, plus, for_small = name.partition("+")
    if plus and {for_large, for_small} <= CPU_BACKENDS.keys():
        name = for_large if large else for_small
    if name not in get_args(BackendName):
        raise SelectionError(f"unknown readout backend {name!r}: choose from {', '.join(get_args(BackendName))}")
    device = request.hidden.device.type
    if name in GPU_BACKENDS or (name == "auto" and device == "cuda"):
        return gpu_backend(request, name)
    families = ["torch", "native"] if name == "auto" and large else ["torch"] if name == "auto" else [name]
    variants = [variant for family in families for variant in _variants(family)]
    possible = [variant for variant in variants if _possible(variant, request)]
    if not possible:
        raise SelectionError(f"the readout backend {name!r} cannot be used for this model on {device}: {REQUIREMENTS[name]}")
    if large and len(possible) > 1:
        return fastest_backend({variant: CPU_BACKENDS[variant] for variant in possible}, request)
    return possible[0]


def _variants(name: str) -> list[str]:
    """The concrete backends of a CPU that a name stands for: itself, or the members of a family."""
    return [name] if name in CPU_BACKENDS else [variant for variant in CPU_BACKENDS if variant.partition("-")[0] == name]


def _possible(name: str, request: ReadoutRequest) -> bool:
    if name == "native-float32":
        return native.can_run(request)
    if name == "native-dot":
        return native.can_dot(request)
    if name.endswith("onednn"):
        return request.hidden.device.type == "cpu" and products.has_onednn()
    return True
