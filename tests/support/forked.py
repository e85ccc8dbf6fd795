"""The command line in a forked child of this process, which has its imports done: a second less, or five, than a process of its own.

The parent must not have run a backward pass, since torch's autograd threads do not survive a fork.
"""

from __future__ import annotations

import os
import signal
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.support.command_line import Ended

HUNG = -100
"""The exit code that stands for a command which did not end in time."""
PAUSE = 0.02


def import_all() -> None:
    """Imports what any verb imports, so that a child need not."""
    import datasets  # noqa: F401
    import gguf  # noqa: F401
    import pandas  # noqa: F401
    import peft  # noqa: F401
    import plotly  # noqa: F401
    import torch
    import transformers  # noqa: F401

    import layerlens.cli
    import layerlens.plots
    import layerlens.report
    import layerlens.train.trainer  # noqa: F401

    torch.set_num_threads(1)


@dataclass
class Child:
    """A command that runs in a forked process, which writes to `out` and `err`."""

    pid: int
    out: Path
    err: Path
    code: int | None = None

    def poll(self) -> int | None:
        """The exit code, negative for a signal as `subprocess` has it; None while it runs."""
        if self.code is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            self.code = os.waitstatus_to_exitcode(status) if pid else None
        return self.code

    def kill(self) -> bool:
        """Kills it if it still runs; whether that was what ended it."""
        if self.poll() is None:
            os.kill(self.pid, signal.SIGKILL)
            self.code = os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])
            return self.code == -signal.SIGKILL
        return False

    def wait(self, seconds: float) -> Ended:
        """Lets it end; after so many seconds it counts as hung and is killed.

        Seconds are counted in pauses of this process, so that a machine which stops both does not make a hang.
        """
        for _ in range(int(seconds / PAUSE)):
            if self.poll() is not None:
                break
            time.sleep(PAUSE)
        hung = self.poll() is None
        self.kill()
        assert self.code is not None
        return Ended(HUNG if hung else self.code, *(file.read_text(errors="replace") for file in (self.out, self.err)))


def start(words: Sequence[Any], folder: Path, *, name: str = "child", before: Callable[[], None] | None = None) -> Child:
    """Starts `layerlens WORDS` in a folder; `before` is called first, in the child."""
    out, err = folder / f"{name}.out", folder / f"{name}.err"
    sys.stdout.flush()
    sys.stderr.flush()
    pid = os.fork()
    if pid:
        return Child(pid, out, err)
    code = 1
    try:
        os.setpgid(0, 0)
        os.chdir(folder)
        for file, descriptor in ((out, 1), (err, 2)):
            opened = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
            os.dup2(opened, descriptor)
        sys.stdout, sys.stderr = (os.fdopen(number, "w", encoding="utf-8", errors="backslashreplace") for number in (1, 2))
        code = _main(list(map(str, words)), before)
    finally:
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
        os._exit(code)


def _main(words: list[str], before: Callable[[], None] | None) -> int:
    from layerlens.cli import main

    sys.argv = ["layerlens", *words]
    try:
        if before is not None:
            before()
        main()
    except SystemExit as end:
        if isinstance(end.code, str):
            print(end.code, file=sys.stderr)
            return 1
        return end.code or 0
    except BaseException:
        traceback.print_exc()
        return 1
    return 0
