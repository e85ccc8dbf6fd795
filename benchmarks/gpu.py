"""The readout on one GPU, against cuBLAS's bfloat16 product alone, and a whole analysis at Qwen3-4B's exact shape.

    python benchmarks/gpu.py                     some minutes, about 25 GB of the card's memory

Writes benchmarks/gpu.json. Times are CUDA events around a call; the methods take turns, and the best round of each counts. A call ends
when the host has looked at its numbers, as in use. Weights and states are random, from one seed.
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

from layerlens.decode import interface, readout
from layerlens.decode.gpu import fused
from layerlens.decode.gpu import product as gpu_product
from layerlens.decode.gpu.launch import kernels_run

VOCABULARY, ROWS = 151936, 4096
WORKSPACES_MIB = (32, 64, 128)
TILINGS = ((128, 256, 64, 8, 3), (128, 128, 64, 8, 3))
"""Rows, tokens, depth, warps and stages of the fused kernel; `layerlens.decode.gpu.fused.tiling` chooses between them."""
TARGETS = {"ratio": {1024: 1.6, 2560: 1.25, 4096: 1.25}, "extra_mb": 256}
PEAK_BF16 = {"H100 PCIe": 756e12, "H100 NVL": 835e12, "H100": 989.4e12, "H200": 989.4e12, "A100": 312e12}
"""Floating-point operations per second without sparsity, as published by the maker, by part of a card's name; the first match counts."""

QWEN3_4B = {
    "vocab_size": VOCABULARY,
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
        "triton": importlib.metadata.version("triton") if kernels_run(torch.device("cuda", 0)) else None,
        "python": platform.python_version(),
        "seed": args.seed,
        "rows": ROWS,
        "vocabulary": VOCABULARY,
        "targets": TARGETS,
        "readout": [],
    }
    for d_model in TARGETS["ratio"]:
        result["readout"].append(against_cublas(d_model, args.rounds, args.seed))
        print(json.dumps(result["readout"][-1], indent=2), flush=True)
        torch.cuda.empty_cache()
    result["analysis"] = whole_analysis(args.tokens, args.seed)
    print(json.dumps(result["analysis"], indent=2))
    args.out.write_text(json.dumps(result, indent=2) + "\n")


def against_cublas(d_model: int, rounds: int, seed: int) -> dict[str, Any]:
    """All methods at one d_model: entropy of 4,096 rows; with KL and agreement, of 7 states of 512 rows and the final policy's."""
    generator = torch.Generator("cuda").manual_seed(seed)
    order = torch.randperm(ROWS, device="cuda", generator=generator)
    sizes = torch.logspace(-1, 1, ROWS, device="cuda")[order, None]  # from flat to peaked policies
    hidden = (torch.randn(ROWS, d_model, device="cuda", generator=generator) * sizes).bfloat16()
    weight = (torch.randn(VOCABULARY, d_model, device="cuda", generator=generator) * d_model**-0.5).bfloat16()
    logits = torch.empty(ROWS, VOCABULARY, device="cuda", dtype=torch.bfloat16)
    *stack, final = hidden.view(8, ROWS // 8, d_model)
    methods: dict[str, Callable[[], Any]] = {"cublas": partial(torch.mm, hidden, weight.t(), out=logits)}
    for mib in WORKSPACES_MIB:
        read = partial(readout, hidden, weight, backend="workspace")
        methods[f"workspace, {mib} MiB"] = partial(with_value, gpu_product, "WORKSPACE_ELEMENTS", mib << 18, read)
    if kernels_run(hidden.device):
        for tiling in TILINGS:
            read = partial(readout, hidden, weight, backend="triton")
            methods[f"triton, {tiling}"] = partial(with_value, fused, "tiling", lambda *_, tiling=tiling: tiling, read)
    methods["auto"] = partial(readout, hidden, weight)
    methods["auto, with KL and agreement"] = partial(readout, torch.stack(stack), weight, want=("entropy", "kl", "agrees"), final=final)
    for method in methods.values():  # the first call compiles kernels
        method()
    milliseconds: dict[str, list[float]] = {name: [] for name in methods}
    for _ in range(rounds):
        for name, method in methods.items():
            milliseconds[name].append(timed(method))
    best = {name: min(values) for name, values in milliseconds.items()}
    some = slice(0, ROWS * 7 // 8, 16)
    exact = exact_entropy(hidden[some], weight)
    return {
        "d_model": d_model,
        "cublas_ms": round(best["cublas"], 3),
        "cublas_tflops": round(2 * d_model * VOCABULARY * ROWS / best["cublas"] / 1e9, 1),
        "methods": {
            name: {
                "ms": round(best[name], 3),
                "median_ms": round(sorted(milliseconds[name])[rounds // 2], 3),
                "ratio": round(best[name] / best["cublas"], 3),
                "extra_mb": round(extra_memory(method) / 1e6, 1),
                "max_entropy_error": float((method().entropy.flatten()[some].double() - exact).abs().max()),
            }
            for name, method in methods.items()
            if name != "cublas"
        },
        "target_met": bool(
            best["auto"] <= TARGETS["ratio"][d_model] * best["cublas"] and extra_memory(methods["auto"]) <= TARGETS["extra_mb"] * 1e6
        ),
    }


def with_value(module: Any, name: str, value: Any, method: Callable[[], Any]) -> Any:
    """Calls `method` while a module's attribute has another value."""
    before = getattr(module, name)
    setattr(module, name, value)
    try:
        return method()
    finally:
        setattr(module, name, before)


def timed(method: Callable[[], Any]) -> float:
    """Milliseconds of one call, between two events on the GPU."""
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda.synchronize()
    start.record()
    method()
    end.record()
    torch.cuda.synchronize()
    return start.elapsed_time(end)


def extra_memory(method: Callable[[], Any]) -> int:
    """Bytes that torch holds at the peak of a call, more than before it."""
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    method()
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated() - before


def exact_entropy(hidden: Tensor, weight: Tensor) -> Tensor:
    """Entropy of whole logits in float64."""
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
    ids = torch.randint(0, VOCABULARY, (tokens,), generator=torch.Generator().manual_seed(seed)).tolist()
    ll.analyze(lens, [ll.Sample(ids[:512])])  # the first call compiles kernels
    states = 0
    choose = interface.choose_backend

    def counting(request: Any, backend: Any) -> Any:
        nonlocal states
        states += len(request.hidden)
        return choose(request, backend)

    interface.choose_backend = counting
    torch.cuda.synchronize()
    start = time.perf_counter()
    run = ll.analyze(lens, [ll.Sample(ids)])
    torch.cuda.synchronize()
    seconds = time.perf_counter() - start
    interface.choose_backend = choose
    flops = 2 * QWEN3_4B["hidden_size"] * VOCABULARY * states
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
