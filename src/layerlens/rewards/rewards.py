r"""Rewards in TRL's signature: `f(completions, ground_truth, **columns) -> list[float]`, one number per completion.

Completions are texts or lists of chat messages; the answer column is `ground_truth`. A check that hangs or raises on one
answer scores it 0 and is counted in `reward.counts`; it never stops training. What can hang runs in a process of its own.
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
from layerlens.rewards.isolation import Failure, Pool, RewardError, find_function

logger = logging.getLogger(__name__)

TIMEOUT = 10.0
"""Seconds that one answer may take."""
MATH_MEMORY = 8 << 30
"""Bytes of address space of a process that checks mathematics: an answer such as 9^{9^{9^9}} must not eat the machine."""
TAIL = 1000
"""Characters at the end of an answer without a box in which a result is looked for."""

_PLAIN = (str, int, float, bool, type(None), list, tuple, dict)
_INTEGER = re.compile(r"-?[0-9]{1,30}", re.ASCII)


@dataclass
class Counts:
    """How many answers a reward has checked, and on how many the check hung or raised (they scored 0)."""

    answers: int = 0
    hung: int = 0
    raised: int = 0
    last_error: str = ""


class Reward:
    """A reward whose checks run one answer at a time in processes of their own.

    Args:
        target: `"module:function"`, a function in TRL's signature that the process can import. It gets lists of length 1,
            and of the trainer's columns those with plain values (texts, numbers, lists).
        name: what logs call it; by default the function's name.
        timeout: seconds that one answer may take.
        workers: processes at once; by default half of the cores, 4 at most. They start when first needed.
        quick: settles what needs no process; None leaves the answer to it.
        columns: whether the function gets the trainer's other columns (prompts, ...) beside completions and ground truths.
    """

    def __init__(
        self,
        target: str,
        *,
        name: str | None = None,
        timeout: float = TIMEOUT,
        workers: int | None = None,
        quick: Callable[[str, str], float | None] | None = None,
        columns: bool = True,
    ):
        self.__name__ = name or target.partition(":")[2]
        self.target, self.timeout, self.quick, self.columns = target, timeout, quick, columns
        self.workers = workers or max(1, min(4, (os.cpu_count() or 2) // 2))
        self.counts = Counts()
        self._lock = threading.Lock()
        self._pool: Pool | None = None

    def __reduce__(self) -> Any:
        return _rebuilt, (self.target, self.__name__, self.timeout, self.workers, self.quick, self.columns)

    def __call__(
        self,
        completions: Sequence[Any],
        ground_truth: Sequence[Any] | None = None,
        *,
        log_metric: Callable[[str, float], None] | None = None,
        **columns: Any,
    ) -> list[float]:
        """One score per completion; NaN (TRL: not counted) where the function returns None.

        Raises RewardError where the checking process can not start at all.
        """
        texts = [text_of(completion) for completion in completions]
        scores: list[float | None] = [None] * len(texts)
        if self.quick is not None:
            truths = _truths(ground_truth, len(texts), self.__name__)
            scores = [self.quick(text, truth) for text, truth in zip(texts, truths, strict=True)]
        rows = {key: value for key, value in columns.items() if self.columns and _is_column(value, len(texts))}
        if ground_truth is not None:
            rows["ground_truth"] = list(ground_truth)
        rows["completions"] = list(completions)
        left = [i for i, score in enumerate(scores) if score is None]
        checked = self._check([{key: [value[i]] for key, value in rows.items()} for i in left])
        for i, (score, _) in zip(left, checked, strict=True):
            scores[i] = score
        failed = [failure for _, failure in checked if failure]
        self._count(len(texts), failed)
        if log_metric is not None:
            log_metric(f"{self.__name__}/hung", float(sum(failure.hung for failure in failed)))
            log_metric(f"{self.__name__}/raised", float(sum(not failure.hung for failure in failed)))
        return [0.0 if score is None else score for score in scores]

    def close(self) -> None:
        """Ends the checking processes; the next call starts new ones."""
        with self._lock:
            pool, self._pool = self._pool, None
        if pool is not None:
            pool.finalizer()

    def _check(self, requests: list[dict[str, Any]]) -> list[tuple[float, Failure | None]]:
        if not requests:
            return []
        with self._lock:
            if self._pool is None or self._pool.owner != os.getpid():  # a forked child must not share its parent's pipes
                self._pool = Pool(self.target, self.timeout, self.workers)
            pool = self._pool
        if self.workers == 1 or len(requests) == 1:
            return [pool.check(request) for request in requests]
        with ThreadPoolExecutor(self.workers) as threads:
            return list(threads.map(pool.check, requests))

    def _count(self, answers: int, failed: Sequence[Failure]) -> None:
        with self._lock:
            first = self.counts.hung + self.counts.raised == 0
            self.counts.answers += answers
            self.counts.hung += sum(failure.hung for failure in failed)
            self.counts.raised += sum(not failure.hung for failure in failed)
            if failed:
                self.counts.last_error = failed[-1].error
            if failed and first:
                logger.warning(
                    "%s: the check failed on an answer, which scores 0 (%s); further ones are counted in .counts",
                    self.__name__,
                    failed[0].error,
                )


def boxed_reward(completions: Sequence[Any], ground_truth: Sequence[Any] | None = None, **columns: Any) -> list[float]:
    r"""1 where the last `\boxed{...}` holds exactly the ground truth, character by character (the reference's check), else 0."""
    truths = _truths(ground_truth, len(completions), "boxed_reward")
    found = [last_boxed(text_of(completion)) for completion in completions]
    return [float(box is not None and box.strip() == truth.strip()) for box, truth in zip(found, truths, strict=True)]


def arithmetic_reward(completions: Sequence[Any], ground_truth: Sequence[Any] | None = None, **columns: Any) -> list[float]:
    r"""1 where the last `\boxed{...}` is the ground truth, integers compared as integers (`layerlens.rewards.verify`), else 0."""
    truths = _truths(ground_truth, len(completions), "arithmetic_reward")
    return [float(verify(text_of(completion), truth)) for completion, truth in zip(completions, truths, strict=True)]


def quick_math(answer: str, truth: str) -> float | None:
    """Settles what needs no algebra: the same text in the box, or two integers."""
    box = last_boxed(answer)
    if box is None:
        return None
    box, truth = box.strip(), _bare(truth)
    if box == truth:
        return 1.0
    return 0.0 if _INTEGER.fullmatch(box) and _INTEGER.fullmatch(truth) and int(box) != int(truth) else None


def _prepare_math() -> None:
    import resource

    import math_verify  # noqa: F401

    logging.disable(logging.ERROR)  # math-verify warns that it has no time limit of its own
    with suppress(ValueError, OSError):  # a tighter limit is set already
        resource.setrlimit(resource.RLIMIT_AS, (MATH_MEMORY, MATH_MEMORY))


def check_math(completions: Sequence[Any], ground_truth: Sequence[Any]) -> list[float]:
    r"""1 where math-verify holds the answer equal to the ground truth. Has no time limit: `math_reward` runs it under one.

    The answer is the last `\boxed{...}`; without one, what math-verify finds in the last TAIL characters.
    """
    from math_verify import parse, verify

    scores = []
    for completion, truth in zip(completions, ground_truth, strict=True):
        text = text_of(completion)
        box = last_boxed(text)
        found = parse(text[-TAIL:] if box is None else rf"\boxed{{{box}}}", parsing_timeout=None)
        scores.append(float(verify(_gold(str(truth)), found, timeout_seconds=None)))
    return scores


check_math.prepare = _prepare_math  # type: ignore[attr-defined]

math_reward = Reward(f"{__name__}:check_math", name="math_reward", quick=quick_math, columns=False)
r"""1 where the last `\boxed{...}` (or, without a box, the result at the end of the text) equals the ground truth as mathematics."""

REWARDS: Mapping[str, Callable[..., list[float]]] = {"math": math_reward, "boxed": boxed_reward, "arithmetic": arithmetic_reward}


def load_reward(spec: str, *, timeout: float = TIMEOUT, workers: int | None = None) -> Callable[..., list[float]]:
    """A reward by name (math, boxed, arithmetic), or any function as `"module:function"`, guarded as `Reward` says.

    Modules are looked for where Python looks, and in the current folder.

    Raises RewardError where there is no such reward.
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
        raise RewardError(f"reward {spec!r} can not be imported ({type(error).__name__}: {error})") from error
    return Reward(spec, timeout=timeout, workers=workers)


def text_of(completion: Any) -> str:
    """The text of a completion: itself, or the content of its last chat message. Raises RewardError where it is neither."""
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


def _truths(given: Sequence[Any] | None, count: int, name: str) -> list[str]:
    if given is None:
        raise RewardError(f"{name} needs the right answers: the data set must have a column 'ground_truth'")
    if len(given) != count:
        raise RewardError(f"{name}: expected {count} ground truths, one per completion, got {len(given)}")
    return [str(truth) for truth in given]


def _is_column(value: Any, count: int) -> bool:
    return isinstance(value, list | tuple) and len(value) == count and all(isinstance(item, _PLAIN) for item in value)


def _bare(truth: str) -> str:
    """The ground truth without a box or dollar signs around it."""
    box = last_boxed(truth)
    truth = (truth if box is None else box).strip()
    return truth[1:-1].strip() if len(truth) > 2 and truth[0] == truth[-1] == "$" and "$" not in truth[1:-1] else truth


@lru_cache(maxsize=8192)
def _gold(truth: str) -> list[Any]:
    from math_verify import parse

    found = parse(rf"\boxed{{{_bare(truth)}}}", parsing_timeout=None)
    if not found:
        raise ValueError(f"the ground truth {truth!r} can not be read")
    return list(found)


def _rebuilt(target: str, name: str, timeout: float, workers: int, quick: Any, columns: bool) -> Reward:
    return Reward(target, name=name, timeout=timeout, workers=workers, quick=quick, columns=columns)
