"""How much memory is free on a device, as far as this process may use it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import torch


def free_on(device: torch.device) -> int:
    """Bytes that this process can still take on a device.

    On a GPU: what the driver has free, and what torch holds without using it. Elsewhere the memory of the host: what Linux calls
    available, within the limits of the control groups that the process is in (a container's, a Slurm job's); on other systems half of
    the memory that the machine has.
    """
    if device.type == "cuda":
        unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return int(torch.cuda.mem_get_info(device)[0]) + unused
    return min(_host_free(), *_control_group_free())


def _host_free() -> int:
    with suppress(OSError, StopIteration, ValueError):
        lines = Path("/proc/meminfo").read_text().splitlines()
        return int(next(line for line in lines if line.startswith("MemAvailable:")).split()[1]) << 10
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2 if hasattr(os, "sysconf") else 4 << 30


def _control_group_free(root: Path = Path("/sys/fs/cgroup"), own: Path = Path("/proc/self/cgroup")) -> Iterator[int]:
    """What each limited control group (version 2) from the process's own up to the root leaves; file caches count as free.

    Endlessly much comes first, for a process without limits.
    """
    yield 1 << 62
    with suppress(OSError, StopIteration):
        path = next(line for line in own.read_text().splitlines() if line.startswith("0::")).removeprefix("0::").lstrip("/")
        group = root / path
        for folder in (group, *group.parents):
            with suppress(OSError, ValueError, StopIteration):
                limit = int((folder / "memory.max").read_text())  # "max" is no limit
                cached = next(line for line in (folder / "memory.stat").read_text().splitlines() if line.startswith("inactive_file "))
                yield max(0, limit - int((folder / "memory.current").read_text()) + int(cached.split()[1]))
            if folder == root:
                break
