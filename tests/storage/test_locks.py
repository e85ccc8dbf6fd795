"""Locks of a file system that has them, and leases where it has none."""

from __future__ import annotations

import errno
import fcntl
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from layerlens.storage import locks
from layerlens.storage.locks import claim, file_lock, has_locks

HOLDER = """
import errno, fcntl, socket, sys, time, warnings
warnings.simplefilter("ignore")
def missing(*_):
    raise OSError(errno.ENOSYS, "no flock")
fcntl.flock = missing
socket.gethostname = lambda: "elsewhere"
from pathlib import Path
from layerlens.storage import locks
locks.LEASE_SECONDS = 1.0
with locks.claim(Path(sys.argv[1])) as mine:
    print(mine, flush=True)
    time.sleep(60)
"""


@pytest.fixture
def no_locks(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    def missing(*_: object) -> None:
        raise OSError(errno.ENOSYS, "no flock")

    has_locks.cache_clear()
    monkeypatch.setattr(fcntl, "flock", missing)
    monkeypatch.setattr(locks, "LEASE_SECONDS", 1.0)
    yield
    has_locks.cache_clear()


def test_a_file_system_without_locks_is_said_once(no_locks: None, tmp_path: Path) -> None:
    with pytest.warns(UserWarning, match="has no locks: processes share its work by leases, which a dead process loses"):
        assert not has_locks(tmp_path)
    assert not has_locks(tmp_path)


@pytest.mark.filterwarnings("ignore:the file system of")
def test_a_lease_is_exclusive_and_ends_with_its_context(no_locks: None, tmp_path: Path) -> None:
    with claim(tmp_path / "piece") as mine:
        assert mine
        assert (tmp_path / "piece.lease").exists()
    with file_lock(tmp_path / "piece"):
        pass
    assert not (tmp_path / "piece.lease").exists()


@pytest.mark.filterwarnings("ignore:the file system of")
def test_a_process_killed_on_another_host_loses_its_lease_and_a_living_one_does_not(no_locks: None, tmp_path: Path) -> None:
    command = [sys.executable, "-c", HOLDER, str(tmp_path / "piece")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "True\n"

        def claimed(seconds: float) -> bool:
            end = time.monotonic() + seconds
            while time.monotonic() < end:
                with claim(tmp_path / "piece") as mine:
                    if mine:
                        return True
                time.sleep(0.05)
            return False

        assert not claimed(2.0), "a living holder keeps its lease"
        holder.send_signal(signal.SIGKILL)
        holder.wait()
        assert claimed(10.0), "a dead one loses it"


def test_a_lock_of_the_system_is_exclusive(tmp_path: Path) -> None:
    with claim(tmp_path / "piece") as first, claim(tmp_path / "piece") as second:
        assert (first, second) == (True, False)
