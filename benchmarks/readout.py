"""The readout on a CPU against its targets: a script that anyone can run again, results in readout.json.

    OMP_NUM_THREADS=1 python -m benchmarks.readout [--repeats 5] [--only ratios memory extras stacking threads]

All methods that are compared take turns in one process; the best round of each counts, for `threads` the median round.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import platform
import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from benchmarks.other_libraries import other_libraries

from layerlens.decode import readout
from layerlens.decode.bench import PRODUCT, Shape, methods, peak_memory
from layerlens.decode.choose import backends_for, processor_name
from layerlens.decode.cpu import native
from layerlens.decode.request import ReadoutRequest
from layerlens.decode.unembedding import Unembedding

OUT = Path(__file__).with_suffix(".json")

USUAL = "whole logits (softmax and log_softmax)"
"""The method against which gains are reported: the formula of the paper's reference implementation."""


def in_turns(timed: dict[str, Callable[[], Any]], repeats: int, calls: int = 1) -> dict[str, list[float]]:
    """Seconds of each function in each round, after one round to warm up: the shortest of `calls` consecutive calls.

    A virtual machine may take back memory that a function has not used for a while. A function that fills gigabytes is then slow in
    its first call, which should not count.
    """
    seconds: dict[str, list[float]] = {name: [] for name in timed}
    for turn in range(repeats + 1):
        for name, function in timed.items():
            times = []
            for _ in range(calls):
                start = time.perf_counter()
                function()
                times.append(time.perf_counter() - start)
            if turn:
                seconds[name].append(min(times))
    return seconds


def ratios(shape: Shape, repeats: int) -> dict[str, Any]:
    """The readout and other libraries against the bare product and the paper's formula; the C++ pass against its own product."""
    hidden, weight = shape.tensors()
    compared = {**methods(shape, compiled=True), **other_libraries()}
    timed = {name: lambda method=method: method(hidden, weight) for name, method in compared.items()}
    request = ReadoutRequest(Unembedding(weight), hidden)
    for name, dot in (("native-float32", False), ("native-dot", True)):
        if native.can_dot(request) if dot else native.can_run(request):
            timed[f"C++ pass ({name})"] = lambda dot=dot: native.native_backend(request, dot)
            timed[f"C++ product alone ({name})"] = lambda dot=dot: native.native_backend(request, dot, product_alone=True)
    best = {name: min(seconds) for name, seconds in in_turns(timed, repeats, calls=2).items()}
    product = min(seconds for name, seconds in best.items() if name.startswith(PRODUCT))
    usual = best[USUAL]
    return {
        "shape": asdict(shape),
        "seconds": best,
        "ratio to the fastest bare product": {name: seconds / product for name, seconds in best.items()},
        f"times faster than {USUAL}": {name: usual / seconds for name, seconds in best.items()},
        "C++ pass to its own product": {
            name: best[f"C++ pass ({name})"] / best[f"C++ product alone ({name})"]
            for name in ("native-float32", "native-dot")
            if f"C++ pass ({name})" in best
        },
    }


def memory() -> list[dict[str, Any]]:
    """MiB on top of vectors and weights, each method in a fresh process."""
    rows = []
    for count in (512, 4096):
        for vocabulary in (32_000, 151_936):
            shape = Shape(rows=count, vocabulary=vocabulary)
            compared = {**methods(shape), USUAL: other_libraries()[USUAL]}
            mib = {name: peak_memory(shape, method) for name, method in compared.items() if not name.startswith(PRODUCT)}
            rows.append({"rows": count, "vocabulary": vocabulary, "mib": mib})
            print(rows[-1], flush=True)
    return rows


def extras(repeats: int) -> dict[str, Any]:
    """What more than entropy costs, for 64 states of 8 tokens: top 10, KL to the final policy and log-probability; agreement as well."""
    shape = Shape()
    hidden, weight = shape.tensors()
    stack, final = hidden.view(64, 8, -1), hidden[-8:].flip(0)
    targets = torch.randint(0, shape.vocabulary, (8,), generator=torch.Generator().manual_seed(1))
    more: dict[str, Any] = {"targets": targets, "final": final, "top_k": 10}
    asked: dict[str, dict[str, Any]] = {
        "entropy": {},
        "with top-10, KL and log-probability": {"want": ("entropy", "logp", "kl"), **more},
        "with agreement too": {"want": ("entropy", "logp", "kl", "agrees"), **more},
    }
    names = backends_for(ReadoutRequest(Unembedding(weight), hidden))
    timed = {
        f"{name}: {what}": lambda name=name, arguments=arguments: readout(stack, weight, backend=name, **arguments)
        for name in names
        for what, arguments in asked.items()
    }
    best = {name: min(seconds) for name, seconds in in_turns(timed, repeats).items()}
    ratio = {f"{name}: {what}": best[f"{name}: {what}"] / best[f"{name}: entropy"] for name in names for what in list(asked)[1:]}
    return {"seconds": best, "ratio": ratio}


def stacking(repeats: int) -> dict[str, Any]:
    """64 states of 8 tokens that go through the vocabulary together, and one after the other."""
    shape = Shape()
    hidden, weight = shape.tensors()
    stack = hidden.view(64, 8, -1)
    timed = {
        "together": lambda: readout(stack, weight),
        "one after the other": lambda: [readout(state, weight) for state in stack],
    }
    best = {name: min(seconds) for name, seconds in in_turns(timed, repeats).items()}
    return {"seconds": best, "ratio": best["together"] / best["one after the other"]}


def threads(repeats: int) -> dict[str, Any]:
    """Two threads on a quiet machine, and beside one process that keeps a core busy."""
    hidden, weight = Shape().tensors()
    found: dict[str, Any] = {}
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        for name in ("torch", "native"):
            median = {}
            for beside in ("quiet", "busy", "quiet again"):
                other = multiprocessing.get_context("fork").Process(target=_spin, daemon=True) if beside == "busy" else None
                if other:
                    other.start()
                rounds = in_turns({name: lambda name=name: readout(hidden, weight, backend=name)}, repeats)
                median[beside] = statistics.median(rounds[name])
                if other:
                    other.kill()
            found[name] = {"median seconds": median, "ratio": median["busy"] / max(median["quiet"], median["quiet again"])}
    finally:
        torch.set_num_threads(before)
    return found


def _spin() -> None:
    while True:
        pass


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--only", nargs="+", choices=("ratios", "memory", "extras", "stacking", "threads"), default=None)
    args = parser.parse_args()
    torch.set_num_threads(1)
    found: dict[str, Any] = json.loads(OUT.read_text()) if args.only and OUT.exists() else {}
    found["machine"] = {
        "processor": processor_name(torch.device("cpu")),
        "cores": os.cpu_count(),
        "torch": torch.__version__,
        "python": platform.python_version(),
    }
    wanted = args.only or ("ratios", "extras", "stacking", "threads", "memory")
    found["rounds"] = {**found.get("rounds", {}), **{section: args.repeats for section in wanted if section != "memory"}}
    base = Shape()
    if "ratios" in wanted:
        shapes = {"float32": base, "float32, d_model = 2560": replace(base, d_model=2560), "bfloat16": replace(base, dtype="bfloat16")}
        found["ratios"] = {}
        for name, shape in shapes.items():
            found["ratios"][name] = ratios(shape, args.repeats)
            print(name, json.dumps(found["ratios"][name], indent=1), flush=True)
    for name, measure in (("extras", extras), ("stacking", stacking), ("threads", threads)):
        if name in wanted:
            found[name] = measure(args.repeats)
            print(name, json.dumps(found[name], indent=1), flush=True)
    if "memory" in wanted:
        found["memory"] = memory()
    OUT.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
