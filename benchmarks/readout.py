"""The readout on a CPU against its targets: a script that anyone can run again, results in readout.json.

    OMP_NUM_THREADS=1 python benchmarks/readout.py [--repeats 5] [--only ratios memory extras stacking threads]

Everything that is compared takes turns in one process; of each the best round counts, for `threads` the median.
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

from layerlens.bench import Shape, peak_memory, ways
from layerlens.decode import backends, native, readout
from layerlens.decode.logits import Logits, Task

OUT = Path(__file__).with_suffix(".json")


def in_turns(ways: dict[str, Callable[[], Any]], repeats: int) -> dict[str, list[float]]:
    """Seconds of each way in each round, after one round to warm up."""
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for turn in range(repeats + 1):
        for name, way in ways.items():
            start = time.perf_counter()
            way()
            if turn:
                seconds[name].append(time.perf_counter() - start)
    return seconds


def ratios(shape: Shape, repeats: int) -> dict[str, Any]:
    """Our ways against the bare product, the C++ pass against its own product, all against the usual formula."""
    hidden, weight = shape.tensors()
    contenders = {name: lambda way=way: way(hidden, weight) for name, way in ways(shape, compiled=True).items()}
    task = Task(Logits(weight), hidden)
    for name, dot in (("native", False), ("native-dot", True)):
        if native.can_dot(task) if dot else native.can_run(task):
            contenders[f"C++ pass ({name})"] = lambda dot=dot: native.native(task, dot)
            contenders[f"C++ product alone ({name})"] = lambda dot=dot: native.native(task, dot, product_alone=True)
    best = {name: min(seconds) for name, seconds in in_turns(contenders, repeats).items()}
    product = min(seconds for name, seconds in best.items() if name.startswith("product"))
    usual = best["softmax and log_softmax"]
    return {
        "shape": asdict(shape),
        "seconds": best,
        "ratio to the fastest bare product": {name: seconds / product for name, seconds in best.items()},
        "times faster than softmax and log_softmax": {name: usual / seconds for name, seconds in best.items()},
        "C++ pass to its own product": {
            name: best[f"C++ pass ({name})"] / best[f"C++ product alone ({name})"]
            for name in ("native", "native-dot")
            if f"C++ pass ({name})" in best
        },
    }


def memory() -> list[dict[str, Any]]:
    """MiB on top of vectors and weights, each in a fresh process."""
    rows = []
    for count in (512, 4096):
        for vocabulary in (32_000, 151_936):
            shape = Shape(rows=count, vocabulary=vocabulary)
            mib = {name: peak_memory(shape, name) for name in ways(shape) if "layerlens" in name or "softmax" in name}
            rows.append({"rows": count, "vocabulary": vocabulary, "mib": mib})
            print(rows[-1], flush=True)
    return rows


def extras(repeats: int) -> dict[str, Any]:
    """64 states of 8 tokens: entropy alone, and with top-10, KL to the final policy, agreement and the next token's log-probability."""
    shape = Shape()
    hidden, weight = shape.tensors()
    stack, final = hidden.view(64, 8, -1), hidden[-8:].flip(0)
    targets = torch.randint(0, shape.vocabulary, (8,), generator=torch.Generator().manual_seed(1))
    everything: dict[str, Any] = {"want": ("entropy", "logp", "kl", "agrees"), "targets": targets, "final": final, "top_k": 10}
    names = backends.backends_for(Task(Logits(weight), hidden))
    contenders = {}
    for name in names:
        contenders[f"{name}: entropy"] = lambda name=name: readout(stack, weight, backend=name)
        contenders[f"{name}: everything"] = lambda name=name: readout(stack, weight, backend=name, **everything)
    best = {name: min(seconds) for name, seconds in in_turns(contenders, repeats).items()}
    return {"seconds": best, "ratio": {name: best[f"{name}: everything"] / best[f"{name}: entropy"] for name in names}}


def stacking(repeats: int) -> dict[str, Any]:
    """64 states of 8 tokens through the vocabulary together, and one after the other."""
    shape = Shape()
    hidden, weight = shape.tensors()
    stack = hidden.view(64, 8, -1)
    contenders = {
        "together": lambda: readout(stack, weight),
        "one after the other": lambda: [readout(state, weight) for state in stack],
    }
    best = {name: min(seconds) for name, seconds in in_turns(contenders, repeats).items()}
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
    found["machine"] = {"processor": _processor(), "cores": os.cpu_count(), "torch": torch.__version__, "python": platform.python_version()}
    found["repeats"] = args.repeats
    wanted = args.only or ("ratios", "extras", "stacking", "threads", "memory")
    base = Shape()
    if "ratios" in wanted:
        shapes = {"float32": base, "float32, d = 2560": replace(base, d=2560), "bfloat16": replace(base, dtype="bfloat16")}
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


def _processor() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.processor())


if __name__ == "__main__":
    main()
