"""Free memory: what the system says, within the limits of the process's control groups."""

from __future__ import annotations

import os
from pathlib import Path

import torch

from layerlens.models import free_memory
from layerlens.models.free_memory import free_on


def group(folder: Path, limit: str, current: int, cached: int) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "memory.max").write_text(f"{limit}\n")
    (folder / "memory.current").write_text(f"{current}\n")
    (folder / "memory.stat").write_text(f"anon 7\ninactive_file {cached}\n")


def test_free_memory_of_the_host_is_positive_and_no_more_than_the_machine_has() -> None:
    assert 0 < free_on(torch.device("cpu")) <= os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def test_the_tightest_control_group_from_the_own_one_to_the_root_counts(tmp_path: Path) -> None:
    own = tmp_path / "cgroup"
    own.write_text("12:cpu:/elsewhere\n0::/slurm/job_7/step_0\n")
    root = tmp_path / "root"
    group(root / "slurm/job_7", "1000", 400, 50)
    group(root / "slurm/job_7/step_0", "max", 300, 0)
    group(root / "slurm", "10000", 9900, 700)
    assert min(free_memory._control_group_free(root, own)) == 650
    group(root, "500", 900, 100)
    assert min(free_memory._control_group_free(root, own)) == 0


def test_a_process_without_control_groups_is_not_limited(tmp_path: Path) -> None:
    assert list(free_memory._control_group_free(tmp_path, tmp_path / "missing")) == [1 << 62]
