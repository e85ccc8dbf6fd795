"""Processes that fill a run folder and are killed, and what the folder must then hold."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import xarray as xr

import layerlens as ll

ROOT = Path(__file__).parents[2]


WORKER = """
import sys, torch
torch.set_num_threads(1)
sys.path.insert(0, {root!r})
import layerlens as ll
from tests.support.tiny_models import tiny_model, tiny_tokenizer, random_ids
lens = ll.LensModel.wrap(tiny_model("qwen3"), tiny_tokenizer(), name="tiny-random")
samples = [ll.Sample(random_ids(4 + i % 5, i), 4 + i % 5, id=f"p{{i}}") for i in range(16)]
print("ready", flush=True)
sys.stdin.readline()
ll.analyze(lens, samples, generate=ll.Generation(12, seed=3), out=sys.argv[1], batch_tokens=64, top_k=2)
"""


def start_worker(out: Path, code: str = WORKER) -> subprocess.Popen[bytes]:
    [worker] = start_workers(out, 1, code)
    return worker


def start_workers(out: Path, count: int, code: str = WORKER) -> list[subprocess.Popen[bytes]]:
    """Processes that begin to work at the same moment, once all of them have their imports done."""
    command = [sys.executable, "-c", code.format(root=str(ROOT)), str(out)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    workers = [subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment) for _ in range(count)]
    for worker in workers:
        assert worker.stdout is not None
        assert worker.stdout.readline() == b"ready\n"
    for worker in workers:
        assert worker.stdin is not None
        worker.stdin.write(b"\n")
        worker.stdin.flush()
    return workers


def finish(worker: subprocess.Popen[bytes]) -> None:
    with worker:
        assert worker.wait(timeout=120) == 0


def run_whole(out: Path, code: str = WORKER) -> float:
    """Seconds that a worker takes that nobody disturbs."""
    worker = start_worker(out, code)
    start = time.perf_counter()
    finish(worker)
    return time.perf_counter() - start


def run_through_kills(out: Path, times: int, seconds: float, seed: int, code: str = WORKER) -> None:
    """SIGKILLs at random moments, the run started again after every one, and let end."""
    moments = random.Random(seed)
    for _ in range(times):
        worker = start_worker(out, code)
        with worker:
            time.sleep(moments.uniform(0, seconds * 0.6))
            worker.send_signal(signal.SIGKILL)
            worker.wait(timeout=60)
    finish(start_worker(out, code))


def run_together(out: Path, workers: int, killed: int, seconds: float, seed: int) -> None:
    """Several processes fill one folder; some are SIGKILLed at random moments, and the others go on to the end."""
    moments = random.Random(seed)
    started = start_workers(out, workers)
    for worker in started[:killed]:
        time.sleep(moments.uniform(0, seconds * 0.6 / killed))
        worker.send_signal(signal.SIGKILL)
    for worker in started[killed:]:
        finish(worker)
    for worker in started[:killed]:
        with worker:
            worker.wait(timeout=60)


def assert_same_run(a: Path, b: Path) -> None:
    """The same samples, byte for byte, and nothing else left behind by finished work."""
    names = sorted(file.name for file in (a / "samples").glob("*.nc"))
    assert names == sorted(file.name for file in (b / "samples").glob("*.nc"))
    for name in names:
        assert (a / "samples" / name).read_bytes() == (b / "samples" / name).read_bytes(), name
    means = sorted(file.name for file in (a / "means").glob("*.safetensors"))
    assert len(means) == ll.open_run(a).n_samples
    assert means == sorted(file.name for file in (b / "means").glob("*.safetensors"))
    for name in means:
        assert (a / "means" / name).read_bytes() == (b / "means" / name).read_bytes(), name
    xr.testing.assert_identical(ll.open_run(a).data, ll.open_run(b).data)
