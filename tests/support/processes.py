"""Processes forked from a server that has torch, TRL and layerlens imported, which costs each of them no time."""

from __future__ import annotations

import multiprocessing
import os
import socket
from collections.abc import Callable, Mapping, Sequence
from multiprocessing import connection
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any
from unittest import mock

import torch

ROOT = Path(__file__).parents[2]
FSDP2 = {
    "ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2", "FSDP_AUTO_WRAP_POLICY": "TRANSFORMER_BASED_WRAP",
    "FSDP_TRANSFORMER_CLS_TO_WRAP": "Qwen3DecoderLayer", "FSDP_STATE_DICT_TYPE": "FULL_STATE_DICT", "FSDP_RESHARD_AFTER_FORWARD": "true",
}  # fmt: skip
"""What `accelerate launch` tells processes among which it shards a tiny Qwen3."""

context = multiprocessing.get_context("forkserver")
context.set_forkserver_preload(["tests.support.kills", "tests.support.training"])


def start(work: Callable[..., object], *args: Any) -> BaseProcess:
    """A process that calls a function of a module, which it imports."""
    process = context.Process(target=work, args=args, daemon=True)
    paths = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    with mock.patch.dict(os.environ, OMP_NUM_THREADS="1", PYTHONPATH=paths):  # the first one starts the server
        process.start()
    return process


def launch(work: Callable[..., object], args: Sequence[Any], processes: int, log: Path, env: Mapping[str, str] | None = None) -> None:
    """Calls a function in this many processes of one group, as `torchrun` would start them, and waits for all of them to end.

    What they print is appended to `log`, and shown if one of them fails, which ends the others.
    """
    group = {"ACCELERATE_USE_CPU": "true", **(env or {})}
    if processes > 1:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            group |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(probe.getsockname()[1]), "WORLD_SIZE": str(processes)}
            group |= {"LOCAL_WORLD_SIZE": str(processes)}
    ranks = [{"RANK": str(rank), "LOCAL_RANK": str(rank)} if processes > 1 else {} for rank in range(processes)]
    started = [start(_in_group, work, args, group | rank, log) for rank in ranks]
    running = {process.sentinel: process for process in started}
    while running and all(process.exitcode in (None, 0) for process in started):
        ended = connection.wait(list(running), timeout=300)
        for sentinel in ended:
            running.pop(sentinel).join()
        if not ended:
            break
    for process in running.values():
        process.kill()
        process.join()
    assert [process.exitcode for process in started] == [0] * processes, log.read_text()[-3000:]


def _in_group(work: Callable[..., object], args: Sequence[Any], env: Mapping[str, str], log: Path) -> None:
    with log.open("a") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    os.environ |= env
    torch.set_num_threads(1)
    work(*args)
