"""Files written whole or not at all, and work shared between processes by locks that end with the process."""

from __future__ import annotations

import errno
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any
from uuid import uuid4

from filelock import FileLock, Timeout

from layerlens.errors import RunError

STALE_SECONDS = 3600
"""A temporary file of this age was left by a process that was killed."""


def write_atomic(path: Path, write: Callable[[Path], Any]) -> None:
    """Lets `write` fill a temporary file beside `path`, and puts it in place in one step; nothing is left of a failure."""
    tmp = path.with_name(f".{path.name}.{uuid4().hex[:8]}.tmp")
    try:
        write(tmp)
        with tmp.open("rb+") as handle:
            os.fsync(handle.fileno())
        os.replace(tmp, path)
    except BaseException:
        tmp.unlink(missing_ok=True)
        raise


def write_text(path: Path, text: str) -> None:
    """Writes `text` in one step, making the folder if need be. Raises RunError where that can not be done."""
    with disk_errors_as_run_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(path, lambda tmp: tmp.write_text(text, encoding="utf-8"))


@contextmanager
def claim(lock_file: Path) -> Iterator[bool]:
    """Whether this process holds the lock; another living process may. A killed one holds nothing."""
    lock = FileLock(lock_file)
    with disk_errors_as_run_errors(lock_file), suppress(Timeout):
        lock.acquire(timeout=0)
    try:
        yield lock.is_locked
    finally:
        lock.release()


def remove_stale_temporaries(folder: Path) -> None:
    """Removes temporary files that killed processes have left below a folder; those of living ones are younger."""
    for tmp in folder.rglob(".*.tmp"):
        with suppress(FileNotFoundError):  # another process has just put it in its place
            if time.time() - tmp.stat().st_mtime > STALE_SECONDS:
                tmp.unlink()


@contextmanager
def disk_errors_as_run_errors(path: Path) -> Iterator[None]:
    """Inside, a full disk or a file that can not be written is a RunError of one line."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise RunError(
                f"no space left on the disk of {path}; what is done is kept: free some and run the same command again"
            ) from error
        raise RunError(f"{path} can not be written ({error.strerror or error})") from error


@contextmanager
def defer_interrupt() -> Iterator[None]:
    """Inside, Ctrl-C is held back until the end: a library that is stopped within a call leaves half-made objects behind, which complain.

    Where the program handles SIGINT in a way of its own, or another thread runs this, nothing is changed.
    """
    ours = threading.current_thread() is threading.main_thread() and signal.getsignal(signal.SIGINT) is signal.default_int_handler
    if not ours:
        yield
        return
    came: list[int] = []
    signal.signal(signal.SIGINT, lambda number, _frame: came.append(number))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    if came:
        raise KeyboardInterrupt


def cache_folder() -> Path:
    """Where what was made for this machine is kept: $LAYERLENS_CACHE, else `layerlens` in the user's cache folder.

    Raises OSError where it would lie in a home folder and the user has none.
    """
    named = os.environ.get("LAYERLENS_CACHE")
    folder = Path(named) if named else Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "layerlens"
    try:
        return folder.expanduser().absolute()
    except RuntimeError as error:
        raise OSError(f"no place for a cache: {error}") from error
