r"""Rewards in TRL's signature: `f(completions, ground_truth, **columns) -> list[float]`, one score per completion.

A completion is a text or a list of chat messages; the data set's column of right answers is called `ground_truth`. A check that hangs
or raises on an answer scores that answer 0 and is counted in `reward.counts`: it never stops training. Checks that may hang run in
processes of their own (`isolation.py`).
"""

from __future__ import annotations

import logging
import os
import re
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache
from importlib.util import find_spec
from typing import Any

from layerlens.rewards.boxed import last_boxed, verify
from layerlens.rewards.isolation import Failure, ProcessPool, RewardError, find_function

logger = logging.getLogger(__name__)

TIMEOUT_SECONDS = 10.0
"""Seconds that the check of one answer may take."""
MATH_MEMORY_BYTES = 8 << 30
"""Address space of a process that checks mathematics: an answer such as 9^{9^{9^9}} must not take the memory of the machine."""
UNBOXED_CHARACTERS = 1000
"""In an answer without a box, the number of characters at its end in which math-verify looks for a result."""

_PLAIN_TYPES = (str, int, float, bool, type(None), list, tuple, dict)
_INTEGER = re.compile(r"-?[0-9]{1,30}", re.ASCII)


@dataclass
class Counts:
    """How many answers a reward has checked, on how many of them the check hung or raised (those scored 0), and the last error."""

    answers: int = 0
    hung: int = 0
    raised: int = 0
    last_error: str = ""


class Reward:
    """A reward that runs a function in processes of its own, one answer at a time.

    Args:
        target: the function in TRL's signature, as `"module:function"`, which the processes import. It gets lists of length 1, and of
            the trainer's columns those with plain values (texts, numbers, lists).
        name: the name in logs; by default the function's name.
        timeout: seconds that the check of one answer may take.
        workers: the most processes at once; by default half of the cores, at most 4. A process starts when it is first needed.
        fast_path: scores an answer against its ground truth without a process, or returns None to leave it to the function.
        columns: whether the function gets the trainer's other columns (prompts, ...) beside completions and ground truths.

    Attributes:
        counts: answers checked so far, and failed checks.
    """

    def __init__(
        self,
        target: str,
        *,
        name: str | None = None,
        timeout: float = TIMEOUT_SECONDS,
        workers: int | None = None,
        fast_path: Callable[[str, str], float | None] | None = None,
        columns: bool = True,
    ):
        self.__name__ = name or target.partition(":")[2]
        self.target, self.timeout, self.fast_path, self.columns = target, timeout, fast_path, columns
        self.workers = workers or max(1, min(4, (os.cpu_count() or 2) // 2))
        self.counts = Counts()
        self._lock = threading.Lock()
        self._pool: ProcessPool | None = None

    def __reduce__(self) -> Any:
        return _unpickled, (self.target, self.__name__, self.timeout, self.workers, self.fast_path, self.columns)

    def __call__(
        self,
        completions: Sequence[Any],
        ground_truth: Sequence[Any] | None = None,
        *,
        log_metric: Callable[[str, float], None] | None = None,
        **columns: Any,
    ) -> list[float]:
        """One score per completion; NaN, which TRL does not count, if the function returns None for it.

        `log_metric(name, value)`, which TRL passes, gets the numbers of checks that hung and raised.

        Raises RewardError if ground truths are missing that the check needs, a completion is neither a text nor chat messages, or a
        checking process cannot start.
        """
        scores, failures = self.checked(completions, ground_truth, **columns)
        if log_metric is not None:
            log_metric(f"{self.__name__}/hung", float(sum(failure.hung for failure in failures.values())))
            log_metric(f"{self.__name__}/raised", float(sum(not failure.hung for failure in failures.values())))
        return scores

    def checked(
        self, completions: Sequence[Any], ground_truth: Sequence[Any] | None = None, **columns: Any
    ) -> tuple[list[float], dict[int, Failure]]:
        """The scores that a call gives, and for each completion whose check failed, by its place, why. Raises what a call raises."""
        texts = [completion_text(completion) for completion in completions]
        scores: list[float | None] = [None] * len(texts)
        if self.fast_path is not None:
            truths = _ground_truths(ground_truth, len(texts), self.__name__)
            scores = [self.fast_path(text, truth) for text, truth in zip(texts, truths, strict=True)]
        rows = {key: value for key, value in columns.items() if self.columns and _is_column(value, len(texts))}
        if ground_truth is not None:
            rows["ground_truth"] = list(ground_truth)
        rows["completions"] = list(completions)
        unscored = [i for i, score in enumerate(scores) if score is None]
        checked = self._check([{key: [value[i]] for key, value in rows.items()} for i in unscored])
        failures = {}
        for i, (score, failure) in zip(unscored, checked, strict=True):
            scores[i] = score
            if failure is not None:
                failures[i] = failure
        self._count(len(texts), list(failures.values()))
        return [0.0 if score is None else score for score in scores], failures

    def close(self) -> None:
        """Ends the checking processes; the next call starts new processes."""
        with self._lock:
            pool, self._pool = self._pool, None
        if pool is not None:
            pool.finalizer()

    def _check(self, requests: list[dict[str, Any]]) -> list[tuple[float, Failure | None]]:
        if not requests:
            return []
        with self._lock:
            if self._pool is None or self._pool.owner_pid != os.getpid():  # a forked child must not share its parent's pipes
                self._pool = ProcessPool(self.target, self.timeout, self.workers)
            pool = self._pool
        if self.workers == 1 or len(requests) == 1:
            return [pool.check(request) for request in requests]
        with ThreadPoolExecutor(self.workers) as threads:
            return list(threads.map(pool.check, requests))

    def _count(self, answers: int, failed: Sequence[Failure]) -> None:
        with self._lock:
            none_before = self.counts.hung + self.counts.raised == 0
            self.counts.answers += answers
            self.counts.hung += sum(failure.hung for failure in failed)
            self.counts.raised += sum(not failure.hung for failure in failed)
            if failed:
                self.counts.last_error = failed[-1].error
            if failed and none_before:
                logger.warning(
                    "%s: the check failed on an answer, which scores 0 (%s); further failures are counted in .counts",
                    self.__name__,
                    failed[0].error,
                )


def boxed_reward(completions: Sequence[Any], ground_truth: Sequence[Any] | None = None, **columns: Any) -> list[float]:
    r"""1 if the last `\boxed{...}` holds the same text as the ground truth, else 0: the check of the BuPO paper's own code."""
    truths = _ground_truths(ground_truth, len(completions), "boxed_reward")
    answers = [last_boxed(completion_text(completion)) for completion in completions]
    return [float(answer is not None and answer.strip() == truth.strip()) for answer, truth in zip(answers, truths, strict=True)]


def arithmetic_reward(completions: Sequence[Any], ground_truth: Sequence[Any] | None = None, **columns: Any) -> list[float]:
    r"""1 if the last `\boxed{...}` holds the ground truth, integers compared as integers (`layerlens.rewards.verify`), else 0."""
    truths = _ground_truths(ground_truth, len(completions), "arithmetic_reward")
    return [float(verify(completion_text(completion), truth)) for completion, truth in zip(completions, truths, strict=True)]


def math_fast_path(answer: str, truth: str) -> float | None:
    """The score of an answer that needs no algebra: 1 for the same text in the box, 0 for two different integers; None otherwise."""
    box = last_boxed(answer)
    if box is None:
        return None
    box, truth = box.strip(), _unwrapped(truth)
    if box == truth:
        return 1.0
    return 0.0 if _INTEGER.fullmatch(box) and _INTEGER.fullmatch(truth) and int(box) != int(truth) else None


def _prepare_math() -> None:
    import resource

    import math_verify  # noqa: F401

    logging.disable(logging.ERROR)  # math-verify warns that it has no time limit of its own
    with suppress(ValueError, OSError):  # a tighter limit is set already
        resource.setrlimit(resource.RLIMIT_AS, (MATH_MEMORY_BYTES, MATH_MEMORY_BYTES))


def check_math(completions: Sequence[Any], ground_truth: Sequence[Any]) -> list[float]:
    r"""1 if math-verify finds the answer equal to the ground truth, else 0. It has no time limit: `math_reward` runs it under one.

    The answer is the last `\boxed{...}`; without a box, what math-verify finds in the last `UNBOXED_CHARACTERS` characters.
    """
    from math_verify import parse, verify

    scores = []
    for completion, truth in zip(completions, ground_truth, strict=True):
        text = completion_text(completion)
        box = last_boxed(text)
        answer = parse(text[-UNBOXED_CHARACTERS:] if box is None else rf"\boxed{{{box}}}", parsing_timeout=None)
        scores.append(float(verify(_parsed_ground_truth(str(truth)), answer, timeout_seconds=None)))
    return scores


check_math.prepare = _prepare_math  # type: ignore[attr-defined]

math_reward = Reward(f"{__name__}:check_math", name="math_reward", fast_path=math_fast_path, columns=False)
r"""1 if the last `\boxed{...}` (without a box, the result at the end of the text) equals the ground truth as mathematics, else 0."""

REWARDS: Mapping[str, Callable[..., list[float]]] = {"math": math_reward, "boxed": boxed_reward, "arithmetic": arithmetic_reward}


def load_reward(spec: str, *, timeout: float = TIMEOUT_SECONDS, workers: int | None = None) -> Callable[..., list[float]]:
    """The reward that `spec` names: math, boxed or arithmetic, or any function as `"module:function"`, which becomes a `Reward`.

    Modules are looked for on Python's path and in the current folder. `timeout` and `workers` apply to functions of the user's, as in
    `Reward`.

    Raises RewardError if there is no such reward, or it cannot be imported.
    """
    if spec == "math" and find_spec("math_verify") is None:
        raise RewardError("the reward math needs math-verify: `pip install 'layerlens-policy[train]'`, or choose boxed or arithmetic")
    if spec in REWARDS:
        return REWARDS[spec]
    module, colon, _ = spec.partition(":")
    if not (module and colon):
        raise RewardError(f"unknown reward {spec!r}: choose from {', '.join(REWARDS)}, or name a function as module:function")
    if os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())
    try:
        find_function(spec)
    except Exception as error:  # importing a module runs it, and it may do anything
        raise RewardError(f"reward {spec!r} cannot be imported ({type(error).__name__}: {error})") from error
    return Reward(spec, timeout=timeout, workers=workers)


def completion_text(completion: Any) -> str:
    """The text of a completion, or the content of its last chat message. Raises RewardError if it is neither a text nor messages."""
    if isinstance(completion, str):
        return completion
    if isinstance(completion, Sequence) and completion and isinstance(completion[-1], Mapping):
        content = completion[-1].get("content")
        if isinstance(content, str):
            return content
        if isinstance(content, Sequence):
            return "".join(str(part.get("text") or "") for part in content if isinstance(part, Mapping))
        if content is None:  # a message that only calls a tool
            return ""
    raise RewardError(f"a completion must be a text or a list of chat messages, got {type(completion).__name__}")


def _ground_truths(given: Sequence[Any] | None, count: int, name: str) -> list[str]:
    if given is None:
        raise RewardError(f"{name} needs the right answers: the data set must have a column 'ground_truth'")
    if len(given) != count:
        raise RewardError(f"{name}: expected {count} ground truths, one per completion, got {len(given)}")
    return [str(truth) for truth in given]


def _is_column(value: Any, count: int) -> bool:
    return isinstance(value, list | tuple) and len(value) == count and all(isinstance(item, _PLAIN_TYPES) for item in value)


def _unwrapped(truth: str) -> str:
    """The ground truth without a box or dollar signs around it."""
    box = last_boxed(truth)
    truth = (truth if box is None else box).strip()
    return truth[1:-1].strip() if len(truth) > 2 and truth[0] == truth[-1] == "$" and "$" not in truth[1:-1] else truth


@lru_cache(maxsize=8192)
def _parsed_ground_truth(truth: str) -> list[Any]:
    from math_verify import parse

    found = parse(rf"\boxed{{{_unwrapped(truth)}}}", parsing_timeout=None)
    if not found:
        raise ValueError(f"the ground truth {truth!r} cannot be read")
    return list(found)


def _unpickled(target: str, name: str, timeout: float, workers: int, fast_path: Any, columns: bool) -> Reward:
    return Reward(target, name=name, timeout=timeout, workers=workers, fast_path=fast_path, columns=columns)
