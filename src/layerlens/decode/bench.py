"""How fast the readout of entropy is on this machine, beside the bare matrix product and the usual formula on whole logits."""

from __future__ import annotations

import multiprocessing
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor

from layerlens.decode import readout
from layerlens.decode.choose import backends_for
from layerlens.decode.cpu import products
from layerlens.decode.request import ReadoutRequest
from layerlens.decode.unembedding import Unembedding
from layerlens.errors import SelectionError

PRODUCT = "product"
"""Names of methods that begin with this word are bare matrix products, chunk by chunk, whose results are thrown away."""

CHUNK_LOGITS = {"cpu": 1 << 20, "cuda": 1 << 25}
"""Logits in a chunk of a bare product, by device type."""

ROWS_CHECKED = 16
"""Rows, about, whose entropies are compared with float64."""

DTYPES = ("float32", "bfloat16", "float16")

Method = Callable[[Float[Tensor, "n d"], Float[Tensor, "vocabulary d"]], Any]
"""Computes the entropies of vectors and an unembedding, or None if it is a bare product."""


@dataclass(frozen=True)
class Shape:
    """What is read out: `rows` vectors of `d_model` numbers each, through an unembedding of `vocabulary` rows."""

    rows: int = 512
    d_model: int = 1024
    vocabulary: int = 151_936
    dtype: str = "float32"
    device: str = "cpu"
    seed: int = 0

    def tensors(self) -> tuple[Float[Tensor, "n d"], Float[Tensor, "vocabulary d"]]:
        """Random vectors of growing length (flat, mixed and peaked policies) and a random unembedding, from `seed`."""
        generator = torch.Generator(self.device).manual_seed(self.seed)
        dtype = getattr(torch, self.dtype)
        hidden = torch.randn(self.rows, self.d_model, generator=generator, device=self.device)
        hidden *= torch.logspace(-1, 1, self.rows, device=self.device)[:, None]
        weight = torch.empty(self.vocabulary, self.d_model, dtype=dtype, device=self.device)
        for part in torch.split(weight, 1 << 14):
            part.copy_(torch.randn(part.shape, generator=generator, device=self.device) * (2 / self.d_model**0.5))
        return hidden.to(dtype), weight


def methods(shape: Shape, compiled: bool = False) -> dict[str, Method]:
    """The methods that can be timed on this machine, by name: bare products, the readout's backends, and whole logits.

    "compile" is among the backends only if `compiled`, because it takes a while to compile.
    """
    found: dict[str, Method] = {}
    if shape.device == "cpu":
        found |= {f"{PRODUCT} (torch.mm)": partial(_product, multiply=products.mm)}
        if products.has_onednn():
            found |= {f"{PRODUCT} (oneDNN)": partial(_product, multiply=products.onednn)}
    else:
        found |= {f"{PRODUCT} (cuBLAS)": partial(_product, multiply=products.mm)}
    one = torch.empty(1, shape.d_model, dtype=getattr(torch, shape.dtype), device=shape.device)
    for backend in backends_for(ReadoutRequest(Unembedding(one), one)):
        if backend != "compile" or compiled:
            found[f"layerlens ({backend})"] = partial(_readout_entropy, backend=backend)
    return {**found, "whole logits (log_softmax)": whole_logits_entropy}


def bench(
    shape: Shape,
    *,
    repeats: int = 5,
    threads: int = 1,
    compiled: bool = False,
    memory: bool = True,
    others: Mapping[str, Method] | None = None,
) -> pd.DataFrame:
    """Times all methods in turns, `repeats` rounds after one round to warm up, and takes the best round of each.

    Args:
        shape: what is read out.
        repeats: number of rounds.
        threads: CPU threads.
        compiled: whether "compile" is timed too.
        memory: whether peak memory is measured too, each method in a process of its own.
        others: further methods to time, by name. To measure their memory on a CPU they must be picklable.

    Returns:
        A row for each method: `seconds`, `ratio` to the fastest bare product, `gflops` (2 · rows · d_model · vocabulary floating-point
        operations / seconds / 1e9), `peak_mib` (see `peak_memory`; NaN if it was not measured) and `error`, the largest
        difference of the entropy of some rows from float64, in nats (NaN for a bare product).

    Raises:
        SelectionError: a number is below 1, or the dtype or device cannot be timed.
    """
    if min(shape.rows, shape.d_model, shape.vocabulary, repeats, threads) < 1:
        raise SelectionError("rows, d_model, vocabulary, repeats and threads must be 1 or more")
    if shape.dtype not in DTYPES:
        raise SelectionError(f"dtype {shape.dtype!r} is not timed: choose from {', '.join(DTYPES)}")
    try:
        torch.empty(1, device=shape.device)
    except (RuntimeError, AssertionError) as error:
        raise SelectionError(f"nothing can be put on device {shape.device!r} ({str(error).splitlines()[0][:200]})") from error
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        hidden, weight = shape.tensors()
        timed = {**methods(shape, compiled), **(others or {})}
        errors = {name: _error(method, hidden, weight) for name, method in timed.items()}
        seconds = dict.fromkeys(timed, float("inf"))
        for turn in range(repeats + 1):
            for name, method in timed.items():
                took = _timed(method, hidden, weight)
                if turn:
                    seconds[name] = min(seconds[name], took)
    finally:
        torch.set_num_threads(before)
    fastest_product = min(value for name, value in seconds.items() if name.startswith(PRODUCT))
    operations = 2 * shape.rows * shape.d_model * shape.vocabulary
    rows = [
        {
            "method": name,
            "seconds": took,
            "ratio": took / fastest_product,
            "gflops": operations / took / 1e9,
            "peak_mib": peak_memory(shape, timed[name], threads) if memory else float("nan"),
            "error": errors[name],
        }
        for name, took in seconds.items()
    ]
    return pd.DataFrame(rows).set_index("method")


def peak_memory(shape: Shape, method: Method, threads: int = 1) -> float:
    """MiB that a method needs at its peak on top of vectors and weights.

    On a GPU this is torch's own count. On a CPU it is the high-water mark of a fresh process that the kernel keeps (Linux; NaN
    elsewhere).
    """
    if shape.device != "cpu":
        hidden, weight = shape.tensors()
        method(hidden, weight)
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        method(hidden, weight)
        return (torch.cuda.max_memory_allocated() - before) / 2**20
    if not Path("/proc/self/clear_refs").exists():
        return float("nan")
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as process:
        return process.submit(_peak_memory_here, shape, method, threads).result()


def _peak_memory_here(shape: Shape, method: Method, threads: int) -> float:
    torch.set_num_threads(threads)
    hidden, weight = shape.tensors()
    method(hidden[:2], weight[:128].clone())  # libraries load their code when they are first called
    Path("/proc/self/clear_refs").write_text("5")
    before = resident("VmRSS")
    method(hidden, weight)
    return resident("VmHWM") - before


def resident(field: str) -> float:
    """MiB of memory of this process, from /proc/self/status (Linux).

    "VmRSS" is the memory it has now, "VmHWM" the most it has had since "5" was last written to /proc/self/clear_refs.
    """
    text = Path("/proc/self/status").read_text()
    return int(next(line for line in text.splitlines() if line.startswith(field)).split()[1]) / 1024


def _timed(method: Method, hidden: Tensor, weight: Tensor) -> float:
    if hidden.is_cuda:
        torch.cuda.synchronize()
    start = time.perf_counter()
    method(hidden, weight)
    if hidden.is_cuda:
        torch.cuda.synchronize()
    return time.perf_counter() - start


def _error(method: Method, hidden: Tensor, weight: Tensor) -> float:
    some = hidden[:: max(1, len(hidden) // ROWS_CHECKED)]
    entropy = method(some, weight)
    if entropy is None:
        return float("nan")
    logits = torch.cat([some.double() @ part.double().T for part in torch.split(weight, 1 << 14)], dim=-1)
    logp = logits.log_softmax(-1)
    return float((entropy.double() + (logp.exp() * logp).sum(-1)).abs().max())


@torch.no_grad()
def _product(hidden: Tensor, weight: Tensor, multiply: Callable[[Tensor, Tensor, Tensor], Any]) -> None:
    """The product, chunk by chunk into one buffer. On a CPU it is float32, and low-precision weights are made float32 chunk by chunk."""
    size = max(64, min(4096 if not hidden.is_cuda else len(weight), CHUNK_LOGITS[hidden.device.type] // len(hidden)))
    dtype = hidden.dtype if hidden.is_cuda else torch.float32
    hidden, out = hidden.to(dtype), torch.empty(len(hidden) * size, dtype=dtype, device=hidden.device)
    for part in torch.split(weight, size):
        multiply(hidden, part.to(dtype), out[: len(hidden) * len(part)].view(len(hidden), len(part)))


def _readout_entropy(hidden: Tensor, weight: Tensor, backend: str) -> Tensor:
    entropy = readout(hidden, weight, backend=backend).entropy
    assert entropy is not None
    return entropy


@torch.no_grad()
def whole_logits_entropy(hidden: Tensor, weight: Tensor) -> Tensor:
    """Entropy by log_softmax of all logits at once, in the dtype of the inputs."""
    logp = (hidden @ weight.T).log_softmax(-1)
    return -(logp.exp() * logp).sum(-1)
