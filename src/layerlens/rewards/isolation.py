"""Checks that may hang run in processes of their own, which can be killed and replaced: from any thread, without signals, beside CUDA."""

from __future__ import annotations

import asyncio
import inspect
import math
import os
import queue
import signal
import subprocess
import sys
import weakref
from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from typing import Any

from layerlens.errors import LayerLensError

START_SECONDS = 300.0
"""Seconds that a checking process may take to start, imports included."""

GRACE_SECONDS = 5.0
"""Seconds beyond its time limit after which a hung check ends by itself, in case the parent that should kill it is gone."""


class RewardError(LayerLensError):
    """There is no such reward, or it cannot be used at all."""


@dataclass(frozen=True)
class Failure:
    """Why a check gave no score: the error in one line, and whether the check hung rather than raised."""

    error: str
    hung: bool = False


class ProcessPool:
    """Checking processes of one function, each used by one thread at a time and started when it is first needed.

    Args:
        target: the function, as `"module:function"`.
        timeout: seconds that one check may take; then its process is killed and another one takes its place.
        size: the most processes at once.
    """

    def __init__(self, target: str, timeout: float, size: int):
        self.target, self.timeout, self.owner_pid = target, timeout, os.getpid()
        self.idle: queue.LifoQueue[_CheckingProcess | None] = queue.LifoQueue()  # None stands for a process not started yet
        self.running: set[_CheckingProcess] = set()
        for _ in range(size):
            self.idle.put(None)
        self.finalizer = weakref.finalize(self, _end_all, self.running, self.owner_pid)

    def check(self, request: dict[str, Any]) -> tuple[float, Failure | None]:
        """The score that the function gives for the keyword arguments in `request`, or 0 and the failure.

        Waits while all processes are busy. Raises RewardError if a process cannot be started.
        """
        process = self.idle.get()
        try:
            if process is None:
                process = _CheckingProcess(self.target, self.timeout)
                self.running.add(process)
            answered = False
            try:
                answer = process.ask(request)
                answered = True
                return answer
            except TimeoutError:
                return 0.0, Failure(f"no answer in {self.timeout:g} s", hung=True)
            except (EOFError, OSError):
                return 0.0, Failure("the checking process died")
            finally:
                if not answered:  # its late answer must not be taken for the next one's
                    self.running.discard(process)
                    process.end()
                    process = None
        finally:
            self.idle.put(process)


class _CheckingProcess:
    """A Python process that has imported one function and scores each request it is sent. It ends with its parent, even in a hung check."""

    def __init__(self, target: str, timeout: float):
        self.timeout = timeout
        self.pipe, far_end = Pipe()
        path = os.pathsep.join(entry or os.getcwd() for entry in sys.path)
        code = f"from layerlens.rewards.isolation import serve; serve({far_end.fileno()}, {target!r}, {timeout!r})"
        self.process = subprocess.Popen(
            [sys.executable, "-P", "-c", code],
            pass_fds=[far_end.fileno()],
            stdin=subprocess.DEVNULL,
            env={**os.environ, "PYTHONPATH": path},
        )
        far_end.close()
        try:
            problem = self.pipe.recv() if self.pipe.poll(START_SECONDS) else f"not ready after {START_SECONDS:g} s"
        except (EOFError, OSError):
            problem = "its process died"
        except BaseException:
            self.end()
            raise
        if problem:
            self.end()
            raise RewardError(f"the reward {target} cannot be used ({problem}); run the function once by itself to see why")

    def ask(self, request: dict[str, Any]) -> tuple[float, Failure | None]:
        """The score, or 0 and why the function raised. TimeoutError if no answer comes in time, EOFError or OSError if the process died."""
        self.pipe.send(request)
        if not self.pipe.poll(self.timeout):
            raise TimeoutError
        score, error = self.pipe.recv()
        return score, None if error is None else Failure(error)

    def end(self) -> None:
        self.process.kill()
        self.process.wait()
        self.pipe.close()


def _end_all(running: set[_CheckingProcess], owner_pid: int) -> None:
    while running and os.getpid() == owner_pid:  # a forked child leaves its parent's processes alone
        running.pop().end()


def serve(pipe_fd: int, target: str, timeout: float) -> None:
    """What a checking process runs: it imports the function, sends "" or why it cannot, and scores requests until its parent is gone."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    pipe, parent = Connection(pipe_fd), os.getppid()
    try:
        function = find_function(target)
        getattr(function, "prepare", lambda: None)()
    except BaseException as error:
        pipe.send(f"{type(error).__name__}: {error}")
        return
    pipe.send("")
    while os.getppid() == parent:
        if not pipe.poll(5.0):
            continue
        try:
            request = pipe.recv()
        except EOFError:
            return
        signal.setitimer(signal.ITIMER_REAL, timeout + GRACE_SECONDS)
        try:
            answer = (_single_score(_finished(function(**request))), None)
        except BaseException as error:
            answer = (0.0, f"{type(error).__name__}: {error}"[:500])  # type: ignore[assignment]
        signal.setitimer(signal.ITIMER_REAL, 0)
        pipe.send(answer)


def _finished(result: Any) -> Any:
    """What the function returned; if it is an async function, what it returns when it is run to its end."""
    return asyncio.run(result) if inspect.iscoroutine(result) else result


def _single_score(scores: Any) -> float:
    [score] = scores
    return math.nan if score is None else float(score)


def find_function(spec: str) -> Callable[..., Any]:
    """The function that `"module:function"` names. Raises whatever importing the module raises, and TypeError if it names no function."""
    module, _, path = spec.partition(":")
    found: Any = import_module(module)
    for name in path.split("."):
        found = getattr(found, name)
    if not callable(found):
        raise TypeError(f"{path} is not a function")
    return found  # type: ignore[no-any-return]
