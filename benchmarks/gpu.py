"""The readout on one GPU, against cuBLAS's bfloat16 product alone, and a whole analysis at Qwen3-4B's exact shape.

    python benchmarks/gpu.py                     all of it: some minutes, about 25 GB of the card's memory

Writes benchmarks/gpu.json. Times are CUDA events around a call, the ways taken in turns, the best of all rounds; a call ends
with the host's look at its numbers, as it does in use. Weights and states are random, from one seed.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import platform
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from layerlens.decode import interface as streamed
from layerlens.decode import readout
from layerlens.decode.gpu import passes as gpu
from layerlens.decode.gpu import product as gpu_product

VOCAB, ROWS = 151936, 4096
WORKSPACES_MIB = (32, 64, 128)
TILINGS = ((128, 256, 64, 8, 3), (128, 128, 64, 8, 3))
"""Rows, tokens, depth, warps and stages of the fused kernel; `layerlens.decode.gpu.passes` says which is taken where."""
TARGETS = {"ratio": {1024: 1.6, 2560: 1.25, 4096: 1.25}, "extra_mb": 256}
PEAK_BF16 = {"H100 PCIe": 756e12, "H100 NVL": 835e12, "H100": 989.4e12, "H200": 989.4e12, "A100": 312e12}
"""FLOP/s without sparsity, as published by the maker; the first name that the card's contains."""

QWEN3_4B = {
    "vocab_size": VOCAB,
    "hidden_size": 2560,
    "intermediate_size": 9728,
    "num_hidden_layers": 36,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "max_position_embeddings": 40960,
    "tie_word_embeddings": True,
    "rope_theta": 1e6,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--tokens", type=int, default=4096, help="length of the analysed text")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path(__file__).with_suffix(".json"))
    args = parser.parse_args()
    if not torch.cuda.is_available():
        sys.exit("benchmarks/gpu.py measures a CUDA device, and there is none here")
    result: dict[str, Any] = {
        "card": torch.cuda.get_device_name(),
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "triton": importlib.metadata.version("triton") if gpu.kernels_run(torch.device("cuda", 0)) else None,
        "python": platform.python_version(),
        "seed": args.seed,
        "rows": ROWS,
        "vocab": VOCAB,
        "targets": TARGETS,
        "readout": [],
    }
    for d in TARGETS["ratio"]:
        result["readout"].append(against_cublas(d, args.rounds, args.seed))
        print(json.dumps(result["readout"][-1], indent=2), flush=True)
        torch.cuda.empty_cache()
    result["analysis"] = whole_analysis(args.tokens, args.seed)
    print(json.dumps(result["analysis"], indent=2))
    args.out.write_text(json.dumps(result, indent=2) + "\n")


def against_cublas(d: int, rounds: int, seed: int) -> dict[str, Any]:
    """Every way at one width: entropy of 4,096 rows, and KL and agreement as well of 7 states of 512 rows with a final one."""
    generator = torch.Generator("cuda").manual_seed(seed)
    order = torch.randperm(ROWS, device="cuda", generator=generator)
    sizes = torch.logspace(-1, 1, ROWS, device="cuda")[order, None]  # from flat to peaked policies
    hidden = (torch.randn(ROWS, d, device="cuda", generator=generator) * sizes).bfloat16()
    weight = (torch.randn(VOCAB, d, device="cuda", generator=generator) * d**-0.5).bfloat16()
    logits = torch.empty(ROWS, VOCAB, device="cuda", dtype=torch.bfloat16)
    *stack, final = hidden.view(8, ROWS // 8, d)
    ways: dict[str, Callable[[], Any]] = {"cublas": partial(torch.mm, hidden, weight.t(), out=logits)}
    for mib in WORKSPACES_MIB:
        read = partial(readout, hidden, weight, backend="workspace")
        ways[f"workspace, {mib} MiB"] = partial(with_other, gpu_product, "WORKSPACE_ELEMENTS", mib << 18, read)
    if gpu.kernels_run(hidden.device):
        for tiling in TILINGS:
            read = partial(readout, hidden, weight, backend="triton")
            ways[f"triton, {tiling}"] = partial(with_other, gpu, "_tiling", lambda *_, tiling=tiling: tiling, read)
    ways["auto"] = partial(readout, hidden, weight)
    ways["auto, with KL and agreement"] = partial(readout, torch.stack(stack), weight, want=("entropy", "kl", "agrees"), final=final)
    for way in ways.values():  # compiles what has to be compiled
        way()
    milliseconds: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(rounds):
        for name, way in ways.items():
            milliseconds[name].append(timed(way))
    best = {name: min(values) for name, values in milliseconds.items()}
    some = slice(0, ROWS * 7 // 8, 16)
    exact = exact_entropy(hidden[some], weight)
    return {
        "d": d,
        "cublas_ms": round(best["cublas"], 3),
        "cublas_tflops": round(2 * d * VOCAB * ROWS / best["cublas"] / 1e9, 1),
        "ways": {
            name: {
                "ms": round(best[name], 3),
                "median_ms": round(sorted(milliseconds[name])[rounds // 2], 3),
                "ratio": round(best[name] / best["cublas"], 3),
                "extra_mb": round(extra_memory(way) / 1e6, 1),
                "max_entropy_error": float((way().entropy.flatten()[some].double() - exact).abs().max()),
            }
            for name, way in ways.items()
            if name != "cublas"
        },
        "target_met": bool(
            best["auto"] <= TARGETS["ratio"][d] * best["cublas"] and extra_memory(ways["auto"]) <= TARGETS["extra_mb"] * 1e6
        ),
    }


def with_other(module: Any, name: str, value: Any, way: Callable[[], Any]) -> Any:
    """A call with another value of a module's constant."""
    before = getattr(module, name)
    setattr(module, name, value)
    try:
        return way()
    finally:
        setattr(module, name, before)


def timed(way: Callable[[], Any]) -> float:
    """Milliseconds."""
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda.synchronize()
    start.record()
    way()
    end.record()
    torch.cuda.synchronize()
    return start.elapsed_time(end)


def extra_memory(way: Callable[[], Any]) -> int:
    """Bytes that torch held at most during a call over those before."""
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    way()
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated() - before


def exact_entropy(hidden: Tensor, weight: Tensor) -> Tensor:
    """In float64, of whole logits."""
    wide = weight.double()
    logp = [(rows.double() @ wide.T).log_softmax(-1) for rows in hidden.split(64)]
    return torch.cat([-(part.exp() * part).sum(-1) for part in logp])


def whole_analysis(tokens: int, seed: int) -> dict[str, Any]:
    """All sites and default metrics of a random bfloat16 model: speed, and the share of the card's peak that the vocabulary takes."""
    from transformers import Qwen3Config, Qwen3ForCausalLM

    import layerlens as ll

    torch.manual_seed(seed)
    torch.set_default_dtype(torch.bfloat16)
    with torch.device("cuda"):
        model = Qwen3ForCausalLM(Qwen3Config(**QWEN3_4B)).eval()
    torch.set_default_dtype(torch.float32)
    lens = ll.LensModel.wrap(model, name="random Qwen3-4B")
    ids = torch.randint(0, VOCAB, (tokens,), generator=torch.Generator().manual_seed(seed)).tolist()
    ll.analyze(lens, [ll.Sample(ids[:512])])  # compiles what has to be compiled
    states = 0
    choose = streamed.choose_backend

    def counting(request: Any, backend: Any) -> Any:
        nonlocal states
        states += len(request.hidden)
        return choose(request, backend)

    streamed.choose_backend = counting
    torch.cuda.synchronize()
    start = time.perf_counter()
    run = ll.analyze(lens, [ll.Sample(ids)])
    torch.cuda.synchronize()
    seconds = time.perf_counter() - start
    streamed.choose_backend = choose
    flops = 2 * QWEN3_4B["hidden_size"] * VOCAB * states
    name = torch.cuda.get_device_name()
    peak = next((peak for part, peak in PEAK_BF16.items() if part in name), None)
    return {
        "model": "random, Qwen3-4B's shape",
        "tokens": tokens,
        "sites": len(run.sites),
        "layers": run.n_layers,
        "metrics": run.manifest.config.metrics,
        "states_decoded": states,
        "seconds": round(seconds, 2),
        "tokens_per_second": round(tokens / seconds, 1),
        "readout_tflops": round(flops / seconds / 1e12, 1),
        "share_of_bf16_peak": round(flops / seconds / peak, 3) if peak else None,
    }


if __name__ == "__main__":
    main()
