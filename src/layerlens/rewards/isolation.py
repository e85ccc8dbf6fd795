"""Checks that may hang, run in processes of their own: one is killed and started again, so threads, signals and CUDA do not matter."""

from __future__ import annotations

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
"""Seconds that a checking process may take to import what it needs."""


class RewardError(LayerLensError):
    """No such reward, or one that can not be used at all."""


@dataclass(frozen=True)
class Failure:
    """Why a check gave no score."""

    error: str
    hung: bool = False


class Pool:
    """Checking processes, each used by one thread at a time; an empty slot becomes a process when it is needed."""

    def __init__(self, target: str, timeout: float, size: int):
        self.target, self.timeout, self.owner = target, timeout, os.getpid()
        self.slots: queue.LifoQueue[_Process | None] = queue.LifoQueue()
        self.alive: set[_Process] = set()
        for _ in range(size):
            self.slots.put(None)
        self.finalizer = weakref.finalize(self, _end, self.alive, self.owner)

    def check(self, request: dict[str, Any]) -> tuple[float, Failure | None]:
        process = self.slots.get()
        try:
            if process is None:
                process = _Process(self.target, self.timeout)
                self.alive.add(process)
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
                    self.alive.discard(process)
                    process.end()
                    process = None
        finally:
            self.slots.put(process)


class _Process:
    """A Python that has imported one function and scores what it is sent. It dies with its parent, even in a hung check."""

    def __init__(self, target: str, timeout: float):
        self.timeout = timeout
        self.pipe, theirs = Pipe()
        path = os.pathsep.join(entry or os.getcwd() for entry in sys.path)
        code = f"from layerlens.rewards.isolation import serve; serve({theirs.fileno()}, {target!r}, {timeout!r})"
        self.process = subprocess.Popen(
            [sys.executable, "-P", "-c", code],
            pass_fds=[theirs.fileno()],
            stdin=subprocess.DEVNULL,
            env={**os.environ, "PYTHONPATH": path},
        )
        theirs.close()
        try:
            trouble = self.pipe.recv() if self.pipe.poll(START_SECONDS) else f"not ready after {START_SECONDS:g} s"
        except (EOFError, OSError):
            trouble = "its process died"
        except BaseException:
            self.end()
            raise
        if trouble:
            self.end()
            raise RewardError(f"the reward {target} can not be used ({trouble})")

    def ask(self, request: dict[str, Any]) -> tuple[float, Failure | None]:
        """Raises TimeoutError where there is no answer in time, EOFError or OSError where the process is gone."""
        self.pipe.send(request)
        if not self.pipe.poll(self.timeout):
            raise TimeoutError
        score, error = self.pipe.recv()
        return score, None if error is None else Failure(error)

    def end(self) -> None:
        self.process.kill()
        self.process.wait()
        self.pipe.close()


def _end(alive: set[_Process], owner: int) -> None:
    while alive and os.getpid() == owner:  # a forked child leaves its parent's processes alone
        alive.pop().end()


def serve(handle: int, target: str, timeout: float) -> None:
    """What a checking process does: say that it is ready, then score request after request until its parent is gone."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    pipe, parent = Connection(handle), os.getppid()
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
        signal.setitimer(signal.ITIMER_REAL, timeout + 5)  # for when the parent is killed while this check hangs
        try:
            answer = (_number(function(**request)), None)
        except BaseException as error:
            answer = (0.0, f"{type(error).__name__}: {error}"[:500])  # type: ignore[assignment]
        signal.setitimer(signal.ITIMER_REAL, 0)
        pipe.send(answer)


def _number(scores: Any) -> float:
    [score] = scores
    return math.nan if score is None else float(score)


def find_function(spec: str) -> Callable[..., Any]:
    """The function that `"module:function"` names; what importing a module raises, this raises."""
    module, _, path = spec.partition(":")
    found: Any = import_module(module)
    for name in path.split("."):
        found = getattr(found, name)
    if not callable(found):
        raise TypeError(f"{path} is not a function")
    return found  # type: ignore[no-any-return]
