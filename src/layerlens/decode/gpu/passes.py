"""The readout on a GPU: chunks of logits in a workspace of bounded size, or a kernel that keeps them in registers.

With Triton, nothing in the pass over the vocabulary waits for the GPU: it is queued as a whole, and looked at afterwards.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from functools import cache
from importlib.util import find_spec
from types import ModuleType
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import pad

from layerlens.decode.gpu.product import LOW_PRECISION, TILE, Product
from layerlens.decode.moments import Moments, PartialSums, cross_sum, join, merge
from layerlens.decode.reduction import Found, Reducer, TopK, first, with_ids
from layerlens.decode.request import ReadoutRequest
from layerlens.decode.unembedding import Unembedding
from layerlens.errors import SelectionError

PART = 2048
"""Tokens that one program of the fused kernel goes through; the same for all numbers of rows, so that these do not change results."""

FUSED_D = 1024
"""Up to this width the fused kernel is taken: a chunk's product is then too short to hide that its logits are written and read."""


def gpu_backend(request: ReadoutRequest, name: str = "auto") -> str:
    """ "workspace" or "triton": the one that is named, or for "auto" the faster one for this request.

    Raises SelectionError if the one that is named cannot compute the request.
    """
    device, weight = request.hidden.device, request.unembedding.weight
    simple = not (request.kl or request.kl_from or request.top_k)
    if name == "auto":
        narrow = weight.dtype == request.hidden.dtype in LOW_PRECISION and weight.shape[1] <= FUSED_D
        return "triton" if simple and narrow and kernels_run(device) else "workspace"
    if device.type == "cpu" and not kernels_run(device):
        raise SelectionError(f"the readout backend {name!r} cannot be had for this model on cpu: it needs a GPU; choose 'auto'")
    if name == "triton" and not kernels_run(device):
        raise SelectionError("the readout backend 'triton' needs Triton and a GPU of compute capability 8.0 or more; choose 'workspace'")
    if name == "triton" and not simple:
        raise SelectionError("the readout backend 'triton' gives entropy, logp and agrees; choose 'workspace' for KL and top-k")
    return name


@cache
def kernels_run(device: torch.device) -> bool:
    """Whether Triton is there and runs on the device; on a CPU only as its interpreter (TRITON_INTERPRET=1), to test."""
    if device.type == "cpu":
        return find_spec("triton") is not None and _kernels().INTERPRETED
    return device.type == "cuda" and find_spec("triton") is not None and torch.cuda.get_device_capability(device) >= (8, 0)


def workspace(request: ReadoutRequest) -> PartialSums:
    """A matrix product writes the float32 logits of a chunk, a kernel reads them once; without Triton, torch reads them."""
    states = request.states
    product = Product(states, request.unembedding.weight)
    reduction = (_KernelReduction if kernels_run(states.device) else _TorchReduction)(request, product.chunk)
    with _on(states.device):
        for start in range(0, request.vocabulary, product.chunk):
            reduction.take(product(start, min(start + product.chunk, request.vocabulary)), start)
        return reduction.result()


def fused(request: ReadoutRequest) -> PartialSums:
    """One kernel makes the logits and reduces them; they are never written. For entropy, log-probability and agreement."""
    kernels, states, weight = _kernels(), request.states, request.unembedding.weight
    if states.dtype == torch.float64:
        states = states.float()
    n, d = states.shape
    exact = states.dtype == weight.dtype in LOW_PRECISION
    capability = torch.cuda.get_device_capability(states.device) if states.device.type == "cuda" else (0, 0)
    rows, tokens, depth, warps, stages = _tiling(request, exact, capability)
    parts = _Parts(request, -(-request.vocabulary // PART))
    with _on(states.device):
        kernels.fused_rows[(-(-n // rows) * parts.count,)](
            states, weight, parts.sums, parts.ids, parts.targets, *_finishing(request.unembedding),
            n, request.vocabulary, d, states.stride(0), *weight.stride(), PART=PART,
            UPCAST=not exact or kernels.INTERPRETED, EVEN=d % depth == 0,
            ROWS=rows, TOKENS=tokens, DEPTH=depth, num_warps=warps, num_stages=stages,
        )  # fmt: skip
        return parts.joined()


def _tiling(request: ReadoutRequest, exact: bool, capability: tuple[int, int]) -> tuple[int, int, int, int, int]:
    """ROWS, TOKENS, DEPTH, warps and stages of the fused kernel: fixed, as timing them would let rounding change between runs.

    As large as registers allow (`tests/test_gpu.py` asks the compiler).
    """
    if not exact:
        return 64, 128, 32, 8, 2
    return (128, 256, 64, 8, 3) if capability == (9, 0) and request.unembedding.plain and not request.agrees else (128, 128, 64, 8, 3)


class _TorchReduction:
    """Where Triton is missing: the CPU's reduction, in blocks for a GPU."""

    class _Blocks(Reducer):
        block_elements = 1 << 22

    def __init__(self, request: ReadoutRequest, _chunk: int):
        self.request, self.reducer = request, self._Blocks(request)
        self.cuts = request.cuts
        self.parts: list[PartialSums] = []

    def take(self, x: Float[Tensor, "n chunk"], start: int) -> None:
        self.request.unembedding.finish_(x, start, start + x.shape[1])
        self.parts.append(self.reducer.take({name: x[rows] for name, rows in self.cuts.items()}, start))

    def result(self) -> PartialSums:
        return with_ids(merge(self.parts), [self.reducer.found])


class _KernelReduction:
    def __init__(self, request: ReadoutRequest, chunk: int):
        self.request = request
        self.tile = min(TILE, 1 << (chunk - 1).bit_length())
        self.parts = _Parts(request, -(-request.vocabulary // self.tile))
        self.top = TopK(len(request.hidden), request.top_k, request.hidden.device) if request.top_k else None

    def take(self, x: Float[Tensor, "n chunk"], start: int) -> None:
        request, parts, (n, width) = self.request, self.parts, x.shape
        finishing = _finishing(request.unembedding)
        if self.top is not None:  # it wants the logits written
            own = request.unembedding.finish_(x, start, start + width)[parts.cuts["own"]]
            self.top.take_all(own, start)  # which rows need it only the GPU knows
            finishing = None, None, None, None
        final, reference = (
            x[parts.cuts[name]] if wanted else None for name, wanted in (("final", request.kl), ("reference", request.kl_from))
        )
        _kernels().reduce_rows[(n, -(-width // self.tile))](
            x, parts.sums, parts.ids, parts.targets, final, reference, *finishing,
            start, parts.count, n, parts.rows, width, TILE=self.tile, num_warps=8,
        )  # fmt: skip

    def result(self) -> PartialSums:
        return self.parts.joined(None if self.top is None else (self.top.values, self.top.ids))


def _finishing(logits: Unembedding) -> tuple[Tensor | None, float | None, float | None, float | None]:
    """Bias, scale, soft-cap and temperature as the kernels take them: None where there is nothing to do."""
    scale, temperature = (None if value == 1.0 else float(value) for value in (logits.scale, logits.temperature))
    return logits.bias, scale, None if logits.softcap is None else float(logits.softcap), temperature


class _Parts:
    """Where kernels leave the sums of each part of the vocabulary, of all rows of `ReadoutRequest.states`."""

    def __init__(self, request: ReadoutRequest, count: int):
        self.cuts, self.count, weight = request.cuts, count, request.unembedding.weight
        n = request.n_states
        self.rows = min(rows.stop - rows.start for rows in self.cuts.values())
        wanted = {"target": request.targets is not None, "kl": request.kl, "kl_from": request.kl_from}
        self.fields = ["m", "S", "A", *(name for name, want in wanted.items() if want)]
        self.sums = weight.new_empty((len(self.fields), count, n), dtype=torch.float32)
        self.ids = weight.new_empty((count, n), dtype=torch.long) if request.agrees else None
        # anchors have no targets
        self.targets = None if request.targets is None else pad(request.targets, (0, n - len(request.targets)), value=-1)

    def joined(self, top: tuple[Tensor, Tensor] | None = None) -> PartialSums:
        values = dict(zip(self.fields, self.sums, strict=True))
        moments = {name: Moments(*(values[field][:, rows] for field in "mSA")) for name, rows in self.cuts.items()}
        own = moments.pop("own")
        target, kl, kl_from = (values[name][:, self.cuts["own"]] if name in values else None for name in ("target", "kl", "kl_from"))
        kl = None if kl is None else cross_sum(own, moments["final"], kl)
        kl_from = None if kl_from is None else cross_sum(moments["reference"], own, kl_from)
        sums = join(PartialSums(own, moments, target, kl, kl_from))
        best = {}
        if self.ids is not None:
            for name, rows in self.cuts.items():
                m = values["m"][:, rows]
                best[name] = m.amax(0), first(m, self.ids[:, rows])
        return with_ids(sums, [Found(best, top)])


def _on(device: torch.device) -> AbstractContextManager[Any]:
    """Triton launches on the current GPU, which need not be the one of the tensors."""
    return torch.cuda.device(device) if device.type == "cuda" else nullcontext()


@cache
def _kernels() -> ModuleType:
    from layerlens.decode.gpu import triton_kernels

    return triton_kernels
