"""What the launcher of this process (torchrun, accelerate, srun, mpirun) says of its place among the others."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence

LOCAL_RANK = (
    "LOCAL_RANK",  # torchrun, accelerate
    "SLURM_LOCALID",
    "OMPI_COMM_WORLD_LOCAL_RANK",  # Open MPI
    "MPI_LOCALRANKID",  # Intel MPI, MPICH's Hydra
    "MV2_COMM_WORLD_LOCAL_RANK",  # MVAPICH
    "PALS_LOCAL_RANKID",  # HPE Cray
)
RANK = ("RANK", "SLURM_PROCID", "OMPI_COMM_WORLD_RANK", "PMI_RANK", "MV2_COMM_WORLD_RANK", "PALS_RANKID")
# SLURM_NTASKS is set in a batch script too, which runs once
WORLD_SIZE = ("WORLD_SIZE", "SLURM_STEP_NUM_TASKS", "OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "MV2_COMM_WORLD_SIZE")


def local_rank(environment: Mapping[str, str] = os.environ) -> int | None:
    """The number of this process among those on its machine, from 0; None without a launcher."""
    return _first(environment, LOCAL_RANK)


def rank(environment: Mapping[str, str] = os.environ) -> int | None:
    """The number of this process among all, from 0; None without a launcher."""
    return _first(environment, RANK)


def n_processes(environment: Mapping[str, str] = os.environ) -> int:
    """The number of processes that were launched together; 1 without a launcher."""
    return max(1, _first(environment, WORLD_SIZE) or 1)


def _first(environment: Mapping[str, str], names: Sequence[str]) -> int | None:
    found = next((environment[name] for name in names if environment.get(name, "").strip().isdecimal()), None)
    return None if found is None else int(found)
