"""The C++ pass (`native.cpp`): compiled once for this processor where a compiler is there, kept in the user's cache, never required."""

from __future__ import annotations

import ctypes
import hashlib
import logging
import os
import platform
import shutil
import subprocess
from functools import cache, partial
from pathlib import Path

import torch
from torch import Tensor

from layerlens.decode.cpu.ranges import Work, over_ranges
from layerlens.decode.moments import Moments, PartialSums, merge
from layerlens.decode.reduction import Found, with_ids
from layerlens.decode.request import ReadoutRequest
from layerlens.storage.files import cache_folder, write_atomic

log = logging.getLogger("layerlens.decode")

SOURCE = Path(__file__).with_name("native.cpp")
FLAGS = ("-O3", "-march=native", "-std=c++17", "-shared", "-fPIC")
DTYPES = (torch.float32, torch.bfloat16)
ANCHORS = ("final", "reference")
"""In the order in which the pass reads them, before the policies that are compared with them."""


class _Policies(ctypes.Structure):
    _fields_ = (
        ("n", ctypes.c_long),
        ("first", ctypes.c_long),
        *((name, ctypes.c_void_p) for name in ("m", "S", "A")),
        ("k", ctypes.c_long),
        ("values", ctypes.c_void_p),
        ("ids", ctypes.c_void_p),
    )


class _Pass(ctypes.Structure):
    _fields_ = (
        *((name, ctypes.c_void_p) for name in ("packed", "weight", "bias")),
        *((name, ctypes.c_long) for name in ("d", "start", "stop")),
        *((name, ctypes.c_int32) for name in ("weight_bf16", "dot_bf16", "product_alone")),
        ("scale", ctypes.c_float),
        ("per_temperature", ctypes.c_float),
        *((name, _Policies) for name in ("own", "final", "reference")),
        *((name, ctypes.c_void_p) for name in ("targets", "target", "kl", "kl_from")),
    )


class _Largest:
    """The k largest logits that a thread has seen of each row, and their tokens. What a range holds is measured against all before it."""

    def __init__(self, n: int, k: int):
        self.values = torch.full((n, k), -torch.inf)
        self.ids = torch.zeros((n, k), dtype=torch.long)


class _Rows:
    """What the pass fills in for one set of policies; the tensors live as long as it does."""

    def __init__(self, n: int, first: int, largest: _Largest):
        self.m = torch.full((n,), -torch.inf)
        self.S, self.A = torch.zeros(2, n, dtype=torch.float64)
        sums, kept = ([tensor.data_ptr() for tensor in part] for part in ((self.m, self.S, self.A), (largest.values, largest.ids)))
        self.struct = _Policies(n, first, *sums, largest.values.shape[1], *kept)

    @property
    def moments(self) -> Moments:
        return Moments(self.m, self.S, self.A)


def can_run(request: ReadoutRequest) -> bool:
    """Whether the C++ pass computes this: on a CPU, float32 or bfloat16 weights as they lie in memory, no soft-cap."""
    weight = request.unembedding.weight
    on_cpu = weight.device.type == "cpu" and weight.dtype in DTYPES and weight.is_contiguous()
    return on_cpu and request.unembedding.softcap is None and library() is not None


def can_dot(request: ReadoutRequest) -> bool:
    """Whether bfloat16 pairs can be multiplied as they are: exact products, summed in float32. Anchors must be bfloat16 as well."""
    dtypes = {tensor.dtype for tensor in (request.unembedding.weight, request.hidden, *request.anchors.values())}
    pairs = dtypes == {torch.bfloat16} and request.hidden.shape[1] % 2 == 0
    found = library() if pairs and can_run(request) else None
    return found is not None and bool(found.layerlens_has_dot())


def native(request: ReadoutRequest, dot: bool = False, product_alone: bool = False) -> PartialSums:
    """One pass over the whole vocabulary; with `dot` on bfloat16 pairs. The product alone, for timing, leaves no sums."""
    packed, places = _pack({**{name: request.anchors[name] for name in ANCHORS if name in request.anchors}, "own": request.hidden}, dot)
    bias = None if request.unembedding.bias is None else request.unembedding.bias.float().contiguous()
    targets = None if request.targets is None else request.targets.contiguous()
    keep = {name: request.top_k if name == "own" and request.top_k else int(request.agrees) for name in places}
    threads: list[dict[str, _Largest]] = []

    def worker() -> Work:
        threads.append({name: _Largest(n, keep[name]) for name, (n, _) in places.items()})
        return partial(_range, request, packed, places, bias, targets, dot, product_alone, threads[-1])

    sums = merge(over_ranges(request, worker))
    return with_ids(sums, [_found(request, largest) for largest in threads])


def _found(request: ReadoutRequest, largest: dict[str, _Largest]) -> Found:
    best = {name: (of.values[:, 0], of.ids[:, 0]) for name, of in largest.items()} if request.agrees else {}
    return Found(best, (largest["own"].values, largest["own"].ids) if request.top_k else None)


def _range(
    request: ReadoutRequest,
    packed: Tensor,
    places: dict[str, tuple[int, int]],
    bias: Tensor | None,
    targets: Tensor | None,
    dot: bool,
    product_alone: bool,
    largest: dict[str, _Largest],
    start: int,
    stop: int,
) -> PartialSums:
    weight, n = request.unembedding.weight, len(request.hidden)
    rows = {name: _Rows(*place, largest[name]) for name, place in places.items()}
    target = None if targets is None else torch.full((n,), -torch.inf)
    kl, kl_from = (torch.zeros(n, dtype=torch.float64) if asked else None for asked in (request.kl, request.kl_from))
    none = _Policies()
    call = _Pass(
        *map(_address, (packed, weight, bias)),
        weight.shape[1],
        start,
        stop,
        weight.dtype == torch.bfloat16,
        dot,
        product_alone,
        request.unembedding.scale,
        1 / request.unembedding.temperature,
        *(rows[name].struct if name in rows else none for name in ("own", "final", "reference")),
        *map(_address, (targets, target, kl, kl_from)),
    )
    found = library()
    assert found is not None
    found.layerlens_pass(ctypes.byref(call))
    return PartialSums(rows["own"].moments, {name: rows[name].moments for name in request.anchors}, target, kl, kl_from)


def _pack(sets: dict[str, Tensor], dot: bool) -> tuple[Tensor, dict[str, tuple[int, int]]]:
    """Rows side by side as the pass reads them, and of each set how many and in which vector they begin.

    32 bits are a float, or with `dot` a pair of bfloat16.
    """
    found = library()
    assert found is not None
    lanes, panel, first = found.layerlens_lanes(), found.layerlens_panel(), 0
    places = {}
    for name, rows in sets.items():
        places[name] = len(rows), first
        first += -(-len(rows) // lanes)
    d = sets["own"].shape[1]
    packed = torch.zeros((-(-first * lanes // panel), d // 2 if dot else d, panel), dtype=torch.int32)
    for name, rows in sets.items():
        rows = (rows if rows.dtype in DTYPES else rows.float()).contiguous()
        found.layerlens_pack(rows.data_ptr(), len(rows), d, rows.dtype == torch.bfloat16, dot, places[name][1], packed.data_ptr())
    return packed, places


def _address(tensor: Tensor | None) -> int | None:
    return None if tensor is None else tensor.data_ptr()


@cache
def library() -> ctypes.CDLL | None:
    """The compiled pass, None where it can not be had (a debug log line says why)."""
    compiler = shutil.which(os.environ.get("CXX") or "c++") or shutil.which("g++") or shutil.which("clang++")
    if compiler is None or os.name == "nt":
        log.debug("no C++ compiler: the readout runs in torch")
        return None
    try:
        path = _built(compiler)
        found = ctypes.CDLL(str(path))
    except (OSError, subprocess.SubprocessError) as error:
        log.debug("the C++ pass does not build here, the readout runs in torch: %s", getattr(error, "stderr", None) or error)
        return None
    found.layerlens_pass.argtypes = [ctypes.POINTER(_Pass)]
    shape = [ctypes.c_long, ctypes.c_long, ctypes.c_int, ctypes.c_int, ctypes.c_long]
    found.layerlens_pack.argtypes = [ctypes.c_void_p, *shape, ctypes.c_void_p]
    found.layerlens_pass.restype = found.layerlens_pack.restype = None
    found.layerlens_has_dot.restype = ctypes.c_int
    return found


def _built(compiler: str) -> Path:
    key = hashlib.sha256(f"{SOURCE.read_text()} {compiler} {FLAGS} {processor_identity()}".encode()).hexdigest()[:16]
    folder = cache_folder()
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"native-{key}.so"
    if not path.exists():
        command = [compiler, *FLAGS, str(SOURCE), "-o"]
        write_atomic(path, lambda made: subprocess.run([*command, str(made)], check=True, capture_output=True, text=True, timeout=300))
    return path


@cache
def processor_identity() -> str:
    """A text that two machines share only if code compiled for one runs on the other: machines may share a home folder."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return " ".join(sorted({line for line in lines if line.startswith(("model name", "flags", "Features"))}))
    except OSError:
        return f"{platform.machine()} {platform.processor()} {platform.node()}"
