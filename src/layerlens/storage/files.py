"""Files that appear complete or not at all."""

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

from platformdirs import user_cache_path

from layerlens.errors import RunError

STALE_SECONDS = 3600
"""Age from which a temporary file counts as left behind by a killed process."""


def write_atomic(path: Path, write: Callable[[Path], Any]) -> None:
    """Lets `write` fill a temporary file beside `path`, then renames that to `path`; a failure leaves nothing behind."""
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
    """Writes `text` in one step, making the folder if necessary. Raises RunError if the file cannot be written."""
    with disk_errors_as_run_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(path, lambda tmp: tmp.write_text(text, encoding="utf-8"))


def remove_stale_temporaries(folder: Path) -> None:
    """Removes temporary files older than STALE_SECONDS below a folder: killed processes have left them."""
    for tmp in folder.rglob(".*.tmp"):
        with suppress(FileNotFoundError):  # another process has just put it in its place
            if time.time() - tmp.stat().st_mtime > STALE_SECONDS:
                tmp.unlink()


@contextmanager
def disk_errors_as_run_errors(path: Path) -> Iterator[None]:
    """A context in which a full disk, or a file that cannot be written, raises a RunError of one line."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise RunError(
                f"no space left on the disk of {path}; finished work is kept: free some space and run the same command again"
            ) from error
        raise RunError(f"{path} cannot be written ({error.strerror or error})") from error


@contextmanager
def defer_interrupt() -> Iterator[None]:
    """A context that holds Ctrl-C back until its end: h5py complains about half-made objects if a call of it is interrupted.

    It changes nothing if the program has its own handler of SIGINT, or if another than the main thread enters it.
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
    """The folder for what is compiled and timed for this machine: $LAYERLENS_CACHE, else the user's cache folder for layerlens.

    Raises OSError if the folder would lie in a home folder and the user has none.
    """
    named = os.environ.get("LAYERLENS_CACHE")
    try:
        return (Path(named) if named else user_cache_path("layerlens", appauthor=False)).expanduser().absolute()
    except RuntimeError as error:
        raise OSError(f"no place for a cache: {error}") from error
