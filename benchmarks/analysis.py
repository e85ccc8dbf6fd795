"""A whole analysis against the least that it could cost, at SmolLM2-135M's exact shape, and counts at any length.

    OMP_NUM_THREADS=1 python -m benchmarks.analysis counts            forward passes and anchors at 512, 3,000 and 8,192 tokens (seconds)
    OMP_NUM_THREADS=1 python -m benchmarks.analysis times --tokens 250 4096 --rounds 3 1
    OMP_NUM_THREADS=1 python -m benchmarks.analysis memory --tokens 250 4096

Each part writes its figures into benchmarks/analysis.json. `counts` needs no particular size, so a small random model of as many blocks
as SmolLM2-135M is read, at all sites, with all metrics. `times` takes the analysis, the bare product of every state that it decodes, and
one forward pass in turns, with the C++ pass and without; the best round of each counts, in processor time of one thread, which other work
on the machine disturbs least. `memory` is the kernel's own high-water mark of a fresh process, more than the weights take.
"""

from __future__ import annotations

import argparse
import gc
import json
import multiprocessing
import platform
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import torch
from benchmarks.memory import SMOLLM2
from transformers import LlamaConfig, LlamaForCausalLM

import layerlens as ll
from layerlens.analysis import pipeline
from layerlens.decode import interface
from layerlens.decode.bench import resident
from layerlens.decode.choose import processor_name
from layerlens.decode.cpu import native, products
from layerlens.decode.request import ReadoutRequest

OUT = Path(__file__).with_suffix(".json")

SMALL = SMOLLM2 | {"vocab_size": 64, "hidden_size": 16, "intermediate_size": 32, "num_attention_heads": 2, "num_key_value_heads": 1}

BACKENDS = {"C++ pass": "native-float32", "without it": "torch-onednn"}


def random_model(shape: dict[str, Any], seed: int) -> ll.LensModel:
    """A float32 model with random weights."""
    torch.manual_seed(seed)
    return ll.LensModel.wrap(LlamaForCausalLM(LlamaConfig(**shape)).eval(), name="random")


def text(tokens: int, vocabulary: int, seed: int) -> ll.Sample:
    """Random tokens, the first quarter of which are the prompt."""
    return ll.Sample(torch.randint(0, vocabulary, (tokens,), generator=torch.Generator().manual_seed(seed)).tolist(), tokens // 4)


def counts(seed: int) -> dict[str, Any]:
    """Forward passes of a text, and rows of anchors beside those of states, with all the memory that states need and with little."""
    model, found = random_model(SMALL, seed), {}
    passes = []
    model.parts.decoder.register_forward_pre_hook(lambda *_: passes.append(1))
    choose, resolve = interface.choose_backend, pipeline.resolve_state_bytes
    rows = {"states": 0, "anchors": 0}

    def counting(request: ReadoutRequest, backend: str) -> Any:
        rows["states"] += len(request.hidden)
        rows["anchors"] += request.total_rows - len(request.hidden)
        return choose(request, backend)

    interface.choose_backend = counting
    states = 6 * SMALL["num_hidden_layers"] + 1
    for tokens in (512, 3000, 8192):
        every = tokens * states * SMALL["hidden_size"] * 4
        for name, memory in (("all states held", every), ("two thirds of them", every * 2 // 3), ("a hundredth of them", every // 100)):
            passes.clear()
            rows.update(states=0, anchors=0)
            pipeline.resolve_state_bytes = lambda device, memory=memory: memory
            ll.analyze(model, [text(tokens, SMALL["vocab_size"], seed)], backend="torch-mm", progress=False)
            found[f"{tokens} tokens, {name}"] = {"forward passes": len(passes), "anchor share": round(rows["anchors"] / rows["states"], 5)}
    interface.choose_backend, pipeline.resolve_state_bytes = choose, resolve
    return found


def times(tokens: int, rounds: int, seed: int) -> dict[str, Any]:
    """Seconds of the analysis, of the bare products of its states and of one forward pass; the ratio to the latter two together."""
    model = random_model(SMOLLM2, seed)
    sample = text(tokens, SMOLLM2["vocab_size"], seed)
    weight = model.parts.unembedding_weight.detach()
    states = 6 * SMOLLM2["num_hidden_layers"] + 1
    hidden = torch.randn(1820, SMOLLM2["hidden_size"])
    request = ReadoutRequest(model.unembedding(), hidden)
    out = torch.empty(len(hidden), 512)
    ids = torch.tensor([sample.token_ids])

    @torch.inference_mode()
    def torch_product() -> None:
        for part in torch.split(weight, 512):
            products.onednn(hidden, part, out[:, : len(part)])

    bare: dict[str, Callable[[], Any]] = {
        "C++ pass": lambda: native.native_backend(request, product_alone=True),
        "without it": torch_product,
    }
    forward = torch.inference_mode()(lambda: model.parts.decoder(input_ids=ids, use_cache=False))
    timed: dict[str, Callable[[], Any]] = {"forward": forward}
    for name, backend in BACKENDS.items():
        timed[f"product, {name}"] = bare[name]
        timed[f"analysis, {name}"] = lambda backend=backend: ll.analyze(model, [sample], backend=backend, progress=False)
    best = dict.fromkeys(timed, float("inf"))
    for run in bare.values():
        run()
    for _ in range(rounds):
        for name, run in timed.items():
            for _ in range(1 if name.startswith("analysis") else 3):
                start = time.process_time()
                run()
                best[name] = min(best[name], time.process_time() - start)
    scale = tokens * states / len(hidden)
    found: dict[str, Any] = {"rounds": rounds, "forward seconds": round(best["forward"], 3)}
    for name in BACKENDS:
        least = scale * best[f"product, {name}"] + best["forward"]
        analysis = best[f"analysis, {name}"]
        found[name] = {"products": round(least - best["forward"], 2), "analysis": round(analysis, 2), "ratio": round(analysis / least, 4)}
    return found


def memory(tokens: int, backend: str, seed: int) -> dict[str, int]:
    """MiB at the peak of an analysis in a fresh process, more than the process takes with the weights."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as process:
        return process.submit(_memory_here, tokens, backend, seed).result()


def _memory_here(tokens: int, backend: str, seed: int) -> dict[str, int]:
    torch.set_num_threads(1)
    model = random_model(SMOLLM2, seed)
    ll.analyze(model, [text(4, SMOLLM2["vocab_size"], seed)], backend=backend, progress=False)  # libraries load their code
    gc.collect()
    Path("/proc/self/clear_refs").write_text("5")
    weights = resident("VmRSS")
    ll.analyze(model, [text(tokens, SMOLLM2["vocab_size"], seed)], backend=backend, progress=False)
    return {"with weights": round(weights), "over weights": round(resident("VmHWM") - weights)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=("counts", "times", "memory"))
    parser.add_argument("--tokens", type=int, nargs="+", default=[250, 4096])
    parser.add_argument("--rounds", type=int, nargs="+", default=[3, 1], help="rounds at each number of tokens")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    torch.set_num_threads(1)
    found: dict[str, Any] = json.loads(OUT.read_text()) if OUT.exists() else {}
    found["machine"] = {
        "processor": processor_name(torch.device("cpu")),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "seed": args.seed,
    }
    if args.part == "counts":
        found["counts"] = counts(args.seed)
    for tokens, rounds in zip(args.tokens, args.rounds, strict=False):
        if args.part == "times":
            found.setdefault("times", {})[f"{tokens} tokens"] = times(tokens, rounds, args.seed)
        elif args.part == "memory":
            found.setdefault("memory in MiB", {})[f"{tokens} tokens"] = {
                name: memory(tokens, backend, args.seed) for name, backend in BACKENDS.items()
            }
        OUT.write_text(json.dumps(found, indent=1) + "\n")
    OUT.write_text(json.dumps(found, indent=1) + "\n")
    print(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
