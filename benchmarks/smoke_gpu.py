"""Does layerlens do on this machine's card what it does on a CPU? Eleven steps in about ten minutes on one H100.

    python benchmarks/smoke_gpu.py                       on a CUDA card; writes benchmarks/smoke_gpu.json
    python benchmarks/smoke_gpu.py --cpu                 every step that can run without one, at small shapes (CI does this)
    python benchmarks/smoke_gpu.py --only kernels,bupo   some steps

Each step is a process of its own with a time limit, so that one that hangs or crashes leaves the others. It prints one JSON line:
step, ok (null: it does not apply here, and `skipped` says why), seconds, peak_mib (of the card, or of the process on a CPU), figure,
bound, and `error` if it failed. The steps and what each one's figures mean: benchmarks/smoke_steps.py.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "src")]

SECONDS = {
    "toolchain": 60, "kernels": 180, "cpu_and_gpu": 120, "readout": 120, "analysis_4b": 120, "analysis_8b": 180, "sampling": 120,
    "device_map": 120, "processes": 180, "bupo": 240, "vllm": 240,
}  # fmt: skip
"""The steps in their order, and the time limit of each in seconds; all together end within 28 minutes, whatever hangs."""

MARK = "smoke step: "
"""Begins the line in which a step's process gives its result; libraries print lines of their own."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cpu", action="store_true", help="small shapes on the CPU")
    parser.add_argument("--only", default=",".join(SECONDS), help="steps, separated by commas")
    parser.add_argument("--out", type=Path, help="file for the results [default: benchmarks/smoke_gpu.json on a card, none with --cpu]")
    parser.add_argument("--step", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.step:
        take(args.step, args.cpu)
        return
    unknown = sorted(set(args.only.split(",")) - set(SECONDS))
    if unknown:
        sys.exit(f"smoke_gpu.py: no step {unknown[0]!r}; choose from {', '.join(SECONDS)}")
    results = []
    for step in args.only.split(","):
        results.append(run(step, args.cpu))
        print(json.dumps(results[-1]), flush=True)
    out = args.out or (None if args.cpu else Path(__file__).with_suffix(".json"))
    if out:
        out.write_text(json.dumps(results, indent=2) + "\n")
    failed = [result["step"] for result in results if result["ok"] is False]
    if failed:
        sys.exit(f"smoke_gpu.py: failed: {', '.join(failed)}")


def run(step: str, cpu: bool, limit: float | None = None) -> dict[str, Any]:
    """Takes a step in a process of its own, and kills it and all that it started when its time is over."""
    command = [sys.executable, str(Path(__file__).resolve()), "--step", step, *(["--cpu"] if cpu else [])]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", **({"CUDA_VISIBLE_DEVICES": ""} if cpu else {})}
    limit = SECONDS[step] if limit is None else limit
    start = time.perf_counter()
    child = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT, env=environment, start_new_session=True
    )
    try:
        out, err = child.communicate(timeout=limit)
        error = None if child.returncode == 0 else (err.strip().splitlines() or [f"exit code {child.returncode}"])[-1][:300]
    except subprocess.TimeoutExpired:
        os.killpg(child.pid, signal.SIGKILL)
        out, _ = child.communicate()
        error = f"not done after {limit:g} seconds"
    lines = [line.removeprefix(MARK) for line in out.splitlines() if line.startswith(MARK)]
    result = json.loads(lines[-1]) if lines and error is None else {"ok": False, "error": error or "no result"}
    return {"step": step, "seconds": round(time.perf_counter() - start, 1), **result}


def take(step: str, cpu: bool) -> None:
    """Takes a step in this process and prints its result."""
    import torch

    from benchmarks import smoke_steps
    from layerlens.decode.bench import resident

    if not cpu and not torch.cuda.is_available():
        sys.exit("there is no CUDA device here; --cpu runs what can run without one")
    if cpu:
        torch.set_num_threads(1)
    outcome = getattr(smoke_steps, step)("cpu" if cpu else "cuda")
    peak = resident("VmHWM") if cpu else torch.cuda.max_memory_allocated() / 2**20
    print(MARK + json.dumps({"ok": outcome.ok, "peak_mib": round(peak), **outcome.given()}))


if __name__ == "__main__":
    main()
