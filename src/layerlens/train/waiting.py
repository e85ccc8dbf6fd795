"""What one process does while the others wait for it: its outcome on all of them, and how long it may take."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import torch
from accelerate.utils import broadcast_object_list
from torch import distributed

from layerlens.analysis.forecast import measuring_forecast, sampling_forecast
from layerlens.analysis.sampling import batch_that_fits
from layerlens.errors import TrainingError
from layerlens.models import Generation, LensModel
from layerlens.progress import EVERY_SECONDS, duration, say
from layerlens.prompts.sample import Sample

T = TypeVar("T")


def on_main(accelerator: Any, work: Callable[[], T]) -> T:
    """What `work` gives on the main process, on every process; all must call it. Raises on every process what `work` raises."""
    found: list[Any] = [None]
    if accelerator.is_main_process:
        try:
            found = [work()]
        except Exception as error:  # every process must hear of it, not only this one
            found = [error]
    broadcast_object_list(found)
    if isinstance(found[0], Exception):
        raise found[0]
    return found[0]  # type: ignore[no-any-return]


def longest_wait(device: torch.device) -> float | None:
    """Seconds for which the processes of this run wait for each other before torch ends it; None if this one is alone."""
    if not distributed.is_initialized() or distributed.get_world_size() == 1:
        return None
    group: Any = distributed.group.WORLD
    return float(group._get_backend(device).options._timeout.total_seconds())


def require_in_time(who: str, work: str, seconds: float, device: torch.device, remedy: str) -> None:
    """Says in one line how long work takes that the other processes wait for, if it is long.

    Args:
        who: what asks for the work: a field of the configuration.
        work: what is done, in words.
        seconds: how long it takes at most.
        device: where this process trains.
        remedy: what to change if it takes too long.

    Raises TrainingError if the others would not wait that long.
    """
    wait = longest_wait(device)
    if wait is not None and seconds > wait:
        raise TrainingError(
            f"{who}: {work}, may take {duration(seconds)}, and the other processes wait {duration(wait)}: set ddp_timeout above "
            f"{seconds:.0f} (seconds), {remedy}"
        )
    if seconds >= EVERY_SECONDS:
        others = "" if wait is None else f", for which the other processes wait (up to {duration(wait)})"
        say(f"{who}: {work}, at most {duration(seconds)}{others}")


def work_on(answers: int, generation: Generation, samples: bool) -> str:
    """What one process does, in words: it measures answers, and if it `samples` them too, it does so through transformers."""
    done = "sampled through transformers and measured" if samples else "measured"
    return f"{answers:,} answers of up to {generation.max_new_tokens:,} tokens, {done} by one process"


def sampling_seconds(model: LensModel, prompts: Sequence[Sample], generation: Generation, batch: int | None = None) -> float:
    """How long one process samples answers to those of the prompts that have none, at most; 0 if too short to tell.

    `batch`: answers that are sampled at once; by default as many as fit the memory.
    """
    waiting = [prompt for prompt in prompts if not prompt.has_response]
    if not waiting:
        return 0.0
    longest = max(len(prompt.token_ids) for prompt in waiting)
    size = batch or batch_that_fits(model, waiting, generation, processes=1)
    return sampling_forecast(model, longest, generation.max_new_tokens, len(waiting), size).seconds


def measuring_seconds(model: LensModel, texts: Sequence[Sample], generation: Generation, states: int) -> float:
    """How long one process measures the texts at this many layers and sites; an answer that is not there yet counts at its longest."""
    tokens = sum(len(text.token_ids) + (0 if text.has_response else generation.max_new_tokens) for text in texts)
    return measuring_forecast(model, len(texts), tokens, tokens, states, batch_tokens=8192).seconds
