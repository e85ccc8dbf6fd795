"""How fast the readout is on this machine, beside the bare matrix product and beside other ways to the same numbers."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from importlib.util import find_spec
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
from layerlens.storage.bundled import bundled_model

PRODUCT = "product"
"""Ways whose name begins so are the bare matrix product, chunk by chunk, of which nothing is kept."""

CHUNK_LOGITS = {"cpu": 1 << 20, "cuda": 1 << 25}

ROWS_CHECKED = 16

DTYPES = ("float32", "bfloat16", "float16")

Backend = Callable[[Float[Tensor, "n d"], Float[Tensor, "vocabulary d"]], Any]
"""Vectors and unembedding to entropies, or to None."""


@dataclass(frozen=True)
class Shape:
    """What is read out: `rows` vectors of `d` numbers each through an unembedding of `vocabulary` rows."""

    rows: int = 512
    d: int = 1024
    vocabulary: int = 151_936
    dtype: str = "float32"
    device: str = "cpu"
    seed: int = 0

    def tensors(self) -> tuple[Float[Tensor, "n d"], Float[Tensor, "vocabulary d"]]:
        """Random vectors of growing length (flat, mixed and peaked policies) and a random unembedding."""
        generator = torch.Generator(self.device).manual_seed(self.seed)
        dtype = getattr(torch, self.dtype)
        hidden = torch.randn(self.rows, self.d, generator=generator, device=self.device)
        hidden *= torch.logspace(-1, 1, self.rows, device=self.device)[:, None]
        weight = torch.empty(self.vocabulary, self.d, dtype=dtype, device=self.device)
        for part in torch.split(weight, 1 << 14):
            part.copy_(torch.randn(part.shape, generator=generator, device=self.device) * (2 / self.d**0.5))
        return hidden.to(dtype), weight


def ways(shape: Shape, compiled: bool = False, others: bool = True) -> dict[str, Backend]:
    """Name to function: the bare product, our ways that this machine can run, and other people's formulas."""
    found: dict[str, Backend] = {}
    if shape.device == "cpu":
        found |= {f"{PRODUCT} (torch.mm)": partial(_product, how=products.mm)}
        if products.has_onednn():
            found |= {f"{PRODUCT} (oneDNN)": partial(_product, how=products.onednn)}
    else:
        found |= {f"{PRODUCT} (cuBLAS)": partial(_product, how=lambda h, w, out: torch.mm(h, w.t(), out=out))}
    one = torch.empty(1, shape.d, dtype=getattr(torch, shape.dtype), device=shape.device)
    for backend in backends_for(ReadoutRequest(Unembedding(one), one)):
        if backend != "compile" or compiled:
            found[f"layerlens ({backend})"] = partial(_ours, backend=backend)
    if others:
        found |= {"softmax and log_softmax": _reference, "log_softmax, then exp": _tuned_lens}
        if find_spec("trl"):
            found["TRL's chunked log-probs"] = _trl
        if find_spec("transformer_lens"):
            found["TransformerLens' logit_readout"] = _TransformerLens()
    return found


def bench(
    shape: Shape, *, repeats: int = 5, threads: int = 1, compiled: bool = False, memory: bool = True, others: bool = True
) -> pd.DataFrame:
    """Times every way in turns, `repeats` rounds after one to warm up, and takes the best of each.

    Returns:
        A row for each way: `seconds`, `ratio` to the fastest bare product, `gflops` (2 · rows · d · vocabulary per second),
        `peak_mib` (what a process of its own needs on top of the tensors, NaN where it was not measured) and `error`, the
        largest difference of entropy from float64 on some of the rows, nats (NaN for a bare product).

    Raises SelectionError where the shape makes no sense.
    """
    if min(shape.rows, shape.d, shape.vocabulary, repeats, threads) < 1:
        raise SelectionError("rows, d, vocabulary, repeats and threads must be 1 or more")
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
        contenders = ways(shape, compiled, others)
        seconds = dict.fromkeys(contenders, float("inf"))
        errors = {name: _error(way, hidden, weight) for name, way in contenders.items()}
        for turn in range(repeats + 1):
            for name, way in contenders.items():
                took = _timed(way, hidden, weight)
                if turn:
                    seconds[name] = min(seconds[name], took)
    finally:
        torch.set_num_threads(before)
    bare = min(value for name, value in seconds.items() if name.startswith(PRODUCT))
    work = 2 * shape.rows * shape.d * shape.vocabulary
    rows = [
        {
            "way": name,
            "seconds": took,
            "ratio": took / bare,
            "gflops": work / took / 1e9,
            "peak_mib": peak_memory(shape, name, threads) if memory else float("nan"),
            "error": errors[name],
        }
        for name, took in seconds.items()
    ]
    return pd.DataFrame(rows).set_index("way")


def peak_memory(shape: Shape, name: str, threads: int = 1) -> float:
    """MiB that a way needs on top of vectors and weights: on a GPU as torch counts it, else of a fresh process (Linux; NaN elsewhere)."""
    if shape.device != "cpu":
        hidden, weight = shape.tensors()
        way = ways(shape, compiled=True)[name]
        way(hidden, weight)
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        way(hidden, weight)
        return (torch.cuda.max_memory_allocated() - before) / 2**20
    if not Path("/proc/self/clear_refs").exists():
        return float("nan")
    question = json.dumps({"shape": asdict(shape), "way": name, "threads": threads})
    answer = subprocess.run([sys.executable, "-m", "layerlens.decode.bench", question], capture_output=True, text=True, check=True)
    return float(answer.stdout.split()[-1])


def _measure_memory(question: str) -> float:
    asked = json.loads(question)
    shape = Shape(**asked["shape"])
    torch.set_num_threads(asked["threads"])
    way = ways(shape, compiled=True)[asked["way"]]
    hidden, weight = shape.tensors()
    way(hidden[:2], weight[:128].clone())  # libraries load their code when they are first called
    Path("/proc/self/clear_refs").write_text("5")
    before = resident("VmRSS")
    way(hidden, weight)
    return resident("VmHWM") - before


def resident(field: str) -> float:
    """A line of this process's memory in /proc, MiB: VmRSS now, VmHWM at most since `/proc/self/clear_refs` was told "5" (Linux)."""
    text = Path("/proc/self/status").read_text()
    return int(next(line for line in text.splitlines() if line.startswith(field)).split()[1]) / 1024


def _timed(way: Backend, hidden: Tensor, weight: Tensor) -> float:
    if hidden.is_cuda:
        torch.cuda.synchronize()
    start = time.perf_counter()
    way(hidden, weight)
    if hidden.is_cuda:
        torch.cuda.synchronize()
    return time.perf_counter() - start


def _error(way: Backend, hidden: Tensor, weight: Tensor) -> float:
    few = hidden[:: max(1, len(hidden) // ROWS_CHECKED)]
    entropy = way(few, weight)
    if entropy is None:
        return float("nan")
    logits = torch.cat([few.double() @ part.double().T for part in torch.split(weight, 1 << 14)], dim=-1)
    logp = logits.log_softmax(-1)
    return float((entropy.double() + (logp.exp() * logp).sum(-1)).abs().max())


@torch.no_grad()
def _product(hidden: Tensor, weight: Tensor, how: Callable[[Tensor, Tensor, Tensor], Any]) -> None:
    """Chunk by chunk into one buffer; on a CPU in float32, low-precision weights made float32 chunk by chunk."""
    size = max(64, min(4096 if not hidden.is_cuda else len(weight), CHUNK_LOGITS[hidden.device.type] // len(hidden)))
    dtype = hidden.dtype if hidden.is_cuda else torch.float32
    hidden, out = hidden.to(dtype), torch.empty(len(hidden) * size, dtype=dtype, device=hidden.device)
    for part in torch.split(weight, size):
        how(hidden, part.to(dtype), out[: len(hidden) * len(part)].view(len(hidden), len(part)))


def _ours(hidden: Tensor, weight: Tensor, backend: Any) -> Tensor:
    entropy = readout(hidden, weight, backend=backend).entropy
    assert entropy is not None
    return entropy


@torch.no_grad()
def _reference(hidden: Tensor, weight: Tensor) -> Tensor:
    """Whole logits, their softmax and their log_softmax, as in the reference implementation of the paper (arXiv 2512.19673)."""
    logits = hidden @ weight.T
    return -(logits.softmax(-1) * logits.log_softmax(-1)).sum(-1)


@torch.no_grad()
def _tuned_lens(hidden: Tensor, weight: Tensor) -> Tensor:
    """Whole logits and one log_softmax, as tuned-lens computes entropy (Belrose et al. 2023)."""
    logp = (hidden @ weight.T).log_softmax(-1)
    return -(logp.exp() * logp).sum(-1)


@torch.no_grad()
def _trl(hidden: Tensor, weight: Tensor) -> Tensor:
    """TRL's kernel for log-probabilities, asked for the entropy as well."""
    from trl.kernels.chunked_logprob import ChunkedLogProbFunction

    targets = torch.zeros(len(hidden), dtype=torch.long, device=hidden.device)
    return ChunkedLogProbFunction.apply(hidden, weight, None, targets, 1.0, 32768, None, 1.0, ("log_probs", "entropy"))[1]  # type: ignore[no-any-return]


class _TransformerLens:
    """`logit_readout` of a TransformerLens bridge around a bundled model, with our weights in the place of its unembedding."""

    def __init__(self) -> None:
        self.bridge: Any = None

    @torch.no_grad()
    def __call__(self, hidden: Tensor, weight: Tensor) -> Tensor:
        from transformer_lens.model_bridge import TransformerBridge
        from transformer_lens.tools.analysis import logit_readout

        if self.bridge is None:
            self.bridge = TransformerBridge.boot_transformers(
                str(bundled_model("tiny-qwen3")), device=str(weight.device), dtype=weight.dtype
            )
            self.bridge.eval()
        head = self.bridge.unembed.original_component
        if head.weight.data_ptr() != weight.data_ptr():
            vocabulary, width = weight.shape
            head.weight = torch.nn.Parameter(weight, requires_grad=False)
            head.bias = torch.nn.Parameter(weight.new_zeros(vocabulary), requires_grad=False)
            self.bridge.cfg.d_model, self.bridge.cfg.d_vocab = width, vocabulary
        return logit_readout(self.bridge, hidden, apply_ln=False, vocab=[0]).entropy  # type: ignore[no-any-return]


if __name__ == "__main__":
    print(_measure_memory(sys.argv[1]))
