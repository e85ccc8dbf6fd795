"""Locks between processes: the file system's own, which end with their process, or leases on file systems that have none.

A lease is a file that its holder touches again and again. Whoever sees it untouched for LEASE_SECONDS may take it, so that a process
killed on another host keeps nobody waiting. If a holder was only asleep, two processes do one piece of work, and write the same file.
"""

from __future__ import annotations

import errno
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import lru_cache
from pathlib import Path

from filelock import BaseFileLock, FileLock, SoftFileLease, Timeout

from layerlens.storage.files import disk_errors_as_run_errors

LEASE_SECONDS = 60.0
"""Time after which a lease that nobody has touched is free; its holder touches it three times as often."""
NO_LOCKS = (errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOLCK)
PROBE = ".probe"

_leases: dict[Path, SoftFileLease] = {}
"""One object for each lease, since it is the object that remembers how long it has seen its file untouched."""


def file_lock(path: Path) -> BaseFileLock:
    """A lock on a path, to wait for as a context or to `acquire`."""
    if has_locks(path.parent):
        return FileLock(path)
    lease = path.with_name(f"{path.name}.lease").absolute()
    if lease not in _leases:
        _leases[lease] = SoftFileLease(lease, lease_duration=LEASE_SECONDS)
    return _leases[lease]


@contextmanager
def claim(path: Path) -> Iterator[bool]:
    """A context that tells whether this process holds the lock; it never waits."""
    with disk_errors_as_run_errors(path):
        lock = file_lock(path)
        with suppress(Timeout):
            lock.acquire(timeout=0)
    try:
        yield lock.is_locked
    finally:
        lock.release()


@lru_cache(maxsize=64)
def has_locks(folder: Path) -> bool:
    """Whether the file system of a folder has locks; warns if not."""
    try:
        import fcntl
    except ImportError:  # Windows, whose locks need no probe
        return True
    handle = os.open(folder / PROBE, os.O_RDWR | os.O_CREAT, 0o666)
    try:
        fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno not in NO_LOCKS:
            return True  # held by somebody, so there are locks
        warnings.warn(
            f"the file system of {folder.parent} has no locks: processes share its work by leases, which a dead process loses after "
            f"{LEASE_SECONDS:g} seconds",
            stacklevel=2,
        )
        return False
    finally:
        os.close(handle)
    return True
