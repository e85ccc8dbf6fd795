"""Processes that fill a run folder and are killed, and what the folder must then hold."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import torch
import xarray as xr

import layerlens as ll
from tests.support.processes import context, start
from tests.support.tiny_models import random_ids, tiny_model, tiny_tokenizer

Work = Callable[[ll.LensModel, Path], object]
"""What a process does with its model and a folder; a function of a module, which the process imports."""


def prompts(count: int = 16) -> list[ll.Sample]:
    return [ll.Sample(random_ids(4 + i % 5, i), 4 + i % 5, id=f"p{i}") for i in range(count)]


def fill(lens: ll.LensModel, out: Path, **options: Any) -> None:
    ll.analyze(lens, prompts(), generate=ll.Generation(12, seed=3), out=out, batch_tokens=64, top_k=2, **options)


def start_worker(out: Path, work: Work = fill) -> BaseProcess:
    [worker] = start_workers(out, 1, work)
    return worker


def start_workers(out: Path, count: int, work: Work = fill) -> list[BaseProcess]:
    """Processes that begin to work at the same moment, once all of them have their model."""
    links, workers = [], []
    for _ in range(count):
        here, there = context.Pipe()
        workers.append(start(_work, work, out, there))
        there.close()
        links.append(here)
    for link in links:
        assert link.recv() == "ready"
    for link in links:
        link.send("go")
    return workers


def _work(work: Work, out: Path, link: Connection) -> None:
    torch.set_num_threads(1)
    lens = ll.LensModel.wrap(tiny_model("qwen3"), tiny_tokenizer(), name="tiny-random")
    link.send("ready")
    link.recv()
    work(lens, out)


def finish(worker: BaseProcess) -> None:
    worker.join(timeout=120)
    assert worker.exitcode == 0


def run_whole(out: Path, work: Work = fill) -> float:
    """Seconds that a worker takes that nobody disturbs."""
    worker = start_worker(out, work)
    start = time.perf_counter()
    finish(worker)
    return time.perf_counter() - start


def run_through_kills(out: Path, times: int, seconds: float, seed: int, work: Work = fill) -> None:
    """SIGKILLs at random moments, the run started again after every one, and let end."""
    moments = random.Random(seed)
    for _ in range(times):
        worker = start_worker(out, work)
        time.sleep(moments.uniform(0, seconds * 0.6))
        worker.kill()
        worker.join(timeout=60)
    finish(start_worker(out, work))


def run_together(out: Path, workers: int, killed: int, seconds: float, seed: int) -> None:
    """Several processes fill one folder; some are SIGKILLed at random moments, and the others go on to the end."""
    moments = random.Random(seed)
    started = start_workers(out, workers)
    for worker in started[:killed]:
        time.sleep(moments.uniform(0, seconds * 0.6 / killed))
        worker.kill()
    for worker in started[killed:]:
        finish(worker)
    for worker in started[:killed]:
        worker.join(timeout=60)


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
