"""The place of this process among the others, as launchers say it."""

from __future__ import annotations

import pytest

from layerlens.storage.launch import local_rank, n_processes, rank


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({}, (None, None, 1)),
        ({"LOCAL_RANK": "3", "RANK": "11", "WORLD_SIZE": "16"}, (3, 11, 16)),  # torchrun, accelerate
        ({"SLURM_LOCALID": "2", "SLURM_PROCID": "6", "SLURM_STEP_NUM_TASKS": "8"}, (2, 6, 8)),  # srun
        ({"SLURM_LOCALID": "0", "SLURM_PROCID": "0", "SLURM_NTASKS": "8"}, (0, 0, 1)),  # a batch script, which runs once
        ({"OMPI_COMM_WORLD_LOCAL_RANK": "1", "OMPI_COMM_WORLD_RANK": "1", "OMPI_COMM_WORLD_SIZE": "2"}, (1, 1, 2)),
        ({"MPI_LOCALRANKID": "1", "PMI_RANK": "5", "PMI_SIZE": "6"}, (1, 5, 6)),
        ({"LOCAL_RANK": "1", "SLURM_LOCALID": "0"}, (1, None, 1)),  # torchrun inside srun
        ({"LOCAL_RANK": "-1", "SLURM_LOCALID": ""}, (None, None, 1)),  # what says that there is none
    ],
)
def test_ranks_of_launchers(environment: dict[str, str], expected: tuple[int | None, int | None, int]) -> None:
    assert (local_rank(environment), rank(environment), n_processes(environment)) == expected
