"""Which way a request is computed: as asked, or the fastest for its shape on this machine, found by timing a slice of the vocabulary."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from hashlib import sha256
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from filelock import FileLock
from jaxtyping import Float
from torch import Tensor

from layerlens.decode.cpu import native, products
from layerlens.decode.cpu.compiled import CompiledReducer
from layerlens.decode.cpu.ranges import chunk_size
from layerlens.decode.cpu.torch_pass import stream
from layerlens.decode.gpu import product as gpu_product
from layerlens.decode.gpu.passes import gpu_backend, kernels_run
from layerlens.decode.moments import PartialSums
from layerlens.decode.request import ReadoutRequest
from layerlens.errors import SelectionError
from layerlens.storage.files import cache_folder, write_atomic

BackendName = Literal["auto", "torch", "compile", "native", "workspace", "triton"]

SETTING = "LAYERLENS_READOUT"
"""Environment variable that stands in for "auto"."""

WORTH_TIMING = 10**8
"""Products of two numbers in a request from which on the fastest way is looked for; smaller ones run in torch, always the same way."""

NEEDS = "it needs a C++ compiler (c++, g++ or clang++), contiguous float32 or bfloat16 weights on a CPU and no soft-cap; choose 'torch'"
"""Of the C++ pass, the one way of a CPU that can be missing."""

Backend = Callable[[ReadoutRequest], PartialSums]

CPU: dict[str, Backend] = {
    "torch": partial(stream, product=products.mm),
    "torch-onednn": partial(stream, product=products.onednn),
    "compile": partial(stream, product=products.mm, reducer=CompiledReducer),
    "compile-onednn": partial(stream, product=products.onednn, reducer=CompiledReducer),
    "native": native.native,
    "native-dot": partial(native.native, dot=True),
}

_chosen: dict[str, str] = {}


def choose_backend(request: ReadoutRequest, backend: BackendName = "auto") -> Backend:
    """The way to compute a request. Raises SelectionError where the one that is asked for is unknown or can not be had."""
    name = backend if backend != "auto" else os.environ.get(SETTING, "auto")
    if name not in get_args(BackendName):
        raise SelectionError(f"unknown readout backend {name!r}: choose from {', '.join(get_args(BackendName))}")
    where = request.hidden.device.type
    if name in ("workspace", "triton") or (name == "auto" and where == "cuda"):
        return gpu_backend(request, name)
    big = request.hidden.shape[0] * request.hidden.shape[1] * request.vocabulary >= WORTH_TIMING
    families = ("torch", "native") if name == "auto" and big else ("torch",) if name == "auto" else (name,)
    able = [way for way in CPU if way.split("-")[0] in families and _possible(way, request)]
    if not able:
        raise SelectionError(f"the readout backend {name!r} can not be had for this model on {where}: {NEEDS}")
    return CPU[_fastest(able, request)] if big and len(able) > 1 else CPU[able[0]]


def backends_for(request: ReadoutRequest) -> list[BackendName]:
    """The backends that can compute a request on its device."""
    if request.hidden.device.type == "cuda":
        return ["workspace", "triton"] if kernels_run(request.hidden.device) else ["workspace"]
    return [name for name in ("torch", "compile", "native") if _possible(name, request)]


def float32_product(vectors: Float[Tensor, "n d"], weight: Float[Tensor, "chunk d"]) -> Float[Tensor, "n chunk"]:
    """The product of vectors and a chunk of the weights, for a caller that keeps it."""
    return gpu_product.product(vectors, weight) if weight.device.type == "cuda" else vectors.float() @ weight.float().t()


def _possible(way: str, request: ReadoutRequest) -> bool:
    if way == "native":
        return native.can_run(request)
    if way == "native-dot":
        return native.can_dot(request)
    if way.endswith("onednn"):
        return request.hidden.device.type == "cpu" and products.has_onednn()
    return True


def _fastest(ways: list[str], request: ReadoutRequest) -> str:
    """The way that is fastest for tasks of this shape. Kept in the user's cache, so that all processes compute alike."""
    log_rows = max(1, len(request.hidden)).bit_length()
    shape = (
        log_rows,
        request.hidden.shape[1],
        str(request.hidden.dtype),
        str(request.unembedding.weight.dtype),
        request.kl,
        request.kl_from,
        request.top_k > 0,
    )
    key = sha256(f"{shape} {ways} {torch.__version__} {native.processor()}".encode()).hexdigest()[:16]
    if key not in _chosen:
        try:
            folder = cache_folder()
            folder.mkdir(parents=True, exist_ok=True)
            path = folder / f"fastest-{key}.json"
            with FileLock(path.with_suffix(".lock")):
                way = _kept(path)
                if way not in ways:
                    way = _time(ways, request)
                    write_atomic(path, lambda made: made.write_text(json.dumps({"shape": shape, "way": way})))
                _chosen[key] = way
        except OSError:  # no place to keep it
            _chosen[key] = _time(ways, request)
    return _chosen[key]


def _kept(path: Path) -> Any:
    """The way that a file names; None where there is none, or a damaged one."""
    try:
        return json.loads(path.read_text())["way"]
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        return None


def _time(ways: list[str], request: ReadoutRequest, times: int = 3) -> str:
    """The way that is fastest, at its best, for the first two chunks of the vocabulary; they take turns."""
    logits = request.unembedding
    few = slice(0, 2 * chunk_size(request))
    part = replace(request, unembedding=replace(logits, weight=logits.weight[few], bias=None if logits.bias is None else logits.bias[few]))
    seconds = dict.fromkeys(ways, float("inf"))
    for _ in range(times):
        for way in ways:
            start = time.perf_counter()
            CPU[way](part)
            seconds[way] = min(seconds[way], time.perf_counter() - start)
    return min(seconds, key=seconds.__getitem__)
