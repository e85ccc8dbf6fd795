"""What a piece of work will take, said before its first batch: memory from the model's configuration, time from two short trials.

Time to sample is that of one step, with a cache of the mean length, for each token of the longest response; time to measure that of one
forward pass and of the readout by the backend that the run uses, each timed on a few rows. Both are rough, and the first is a bound.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from layerlens.decode import readout
from layerlens.models import LensModel
from layerlens.models.free_memory import free_on
from layerlens.models.memory import SequenceCost, free_bytes, measuring_bytes
from layerlens.models.sampling import RowwiseGumbelSampler
from layerlens.progress import EVERY_SECONDS, duration, say

WORTH_TIMING = 1e11
"""Operations below which nothing is timed: every machine does them in less than half a minute."""

TRIAL_SHARE = 0.003
"""Share of the operations of the work that the trials of measuring take at most, unless LEAST_ROWS take more."""

TRIALS = 3
"""How often each trial runs: other programs may slow down some of them, and the fastest one counts."""

LEAST_ROWS = 8
TRIAL_ROWS = {"cpu": 128, "cuda": 2048}
TRIAL_BYTES = 64 << 20
"""Bytes of a cache that a trial copies at once."""
TRIAL_TOKENS = 8192
"""Rows of the unembedding that a trial multiplies with."""

LARGER = "or load the model with --dtype bfloat16, --quantize bnb-4bit or --device-map auto"


@dataclass(frozen=True)
class Forecast:
    """What a piece of work will take.

    Attributes:
        what: the work, in words.
        memory, free: bytes that it takes beside the weights, and bytes that are free.
        seconds: how long it takes; 0 if too short to tell.
        is_bound: whether `seconds` is the most it can take.
        advice: what to change if the memory is not enough.
    """

    what: str
    memory: int
    free: int
    seconds: float
    is_bound: bool
    advice: str

    @property
    def fits(self) -> bool:
        return self.memory <= self.free

    def line(self) -> str:
        """Work, memory and time in one line, and what to change if it does not fit."""
        takes = f", {'at most' if self.is_bound else 'about'} {duration(self.seconds)}" if self.seconds >= 1 else ""
        fits = "" if self.fits else f"; this may not fit: {self.advice}, {LARGER}"
        return f"{self.what}: {gigabytes(self.memory)} of {gigabytes(self.free)} free memory{takes}{fits}"

    def announce(self, progress: bool | None) -> None:
        """Prints the line if the work is long enough for a progress to be printed, or may not fit."""
        if progress is not False and (self.seconds >= EVERY_SECONDS or not self.fits):
            say(self.line())


def sampling_forecast(
    model: LensModel, prompt_tokens: int, max_new_tokens: int, responses: int, batch: int, processes: int = 1
) -> Forecast:
    """What sampling takes: every response counted as the longest, in groups of `batch`."""
    groups = -(-responses // batch)
    sequence = SequenceCost.of(model.parts.config, model.parts.dtype.itemsize)
    cost, cached = sequence.bytes(prompt_tokens, max_new_tokens), (prompt_tokens + max_new_tokens // 2) * sequence.per_token
    steps = -(-groups // processes) * max_new_tokens
    worth = 2 * _weights(model) * steps * batch > WORTH_TIMING
    what = f"{responses:,} responses of up to {max_new_tokens:,} tokens in {groups:,} group{'s' if groups > 1 else ''} of up to {batch:,}"
    return Forecast(
        f"sampling from {model.name}, {what}",
        batch * cost,
        free_bytes(model.parts.model, model.parts.blocks),
        steps * _step_seconds(model, batch, batch * cached) if worth else 0.0,
        True,
        "lower --max-new-tokens or the batch",
    )


def measuring_forecast(
    model: LensModel,
    texts: int,
    tokens: int,
    rows: int,
    states: int,
    batch_tokens: int,
    processes: int = 1,
    held: int = 0,
    backend: str = "auto",
) -> Forecast:
    """What measuring takes: `tokens` through the blocks, `rows` at each of `states` places through the vocabulary by a `backend` of
    the readout, `held` bytes of states that wait.
    """
    vocabulary, d = model.parts.unembedding_weight.shape
    operations = 2 * (_weights(model) * tokens + vocabulary * d * rows * states)
    seconds = 0.0
    if operations > WORTH_TIMING:
        trial = int(TRIAL_SHARE * operations / (TRIALS * 2 * _weights(model)))
        trial = max(LEAST_ROWS, min(trial, TRIAL_ROWS.get(model.device.type, TRIAL_ROWS["cpu"])))
        seconds = _token_seconds(model, trial) * tokens + _row_seconds(model, backend) * rows * states
    return Forecast(
        f"measuring {model.name}, {texts:,} texts of {tokens:,} tokens",
        measuring_bytes(model.parts.config, model.parts.dtype.itemsize, batch_tokens, held),
        free_on(model.device),
        seconds / processes,
        False,
        "lower --batch-tokens",
    )


def gigabytes(size: int) -> str:
    """Bytes in words, in GB of 10^9 or MB of 10^6 bytes."""
    if size < 1e8:
        return f"{size / 1e6:.0f} MB"
    return f"{size / 1e9:.1f} GB" if size < 1e10 else f"{size / 1e9:.0f} GB"


def _weights(model: LensModel) -> int:
    return sum(weight.numel() for weight in model.parts.model.parameters())


def _step_seconds(model: LensModel, batch: int, cached: int) -> float:
    """Seconds of one step of sampling: a token of each row through the model and drawn, and this many bytes of the cache copied twice,
    which is what their concatenation with the new ones and attention take.
    """
    ids = torch.zeros((batch, 1), dtype=torch.long, device=model.device)
    part = torch.ones(min(cached, TRIAL_BYTES), dtype=torch.uint8, device=model.device)
    network: Any = model.parts.model
    draw = RowwiseGumbelSampler(range(batch))

    def step() -> None:
        draw(ids, network(input_ids=ids).logits[:, -1]).argmax(-1)
        for _ in range(2 * -(-cached // len(part))):
            part.clone()

    with model.evaluation_mode(), torch.inference_mode():
        return _timed(step, model.device)


def _token_seconds(model: LensModel, rows: int) -> float:
    """Seconds that the blocks take for one token of a text of `rows` tokens."""
    length = min(rows, model.parts.context or rows)
    ids = torch.zeros((-(-rows // length), length), dtype=torch.long)
    with torch.inference_mode():
        seconds = _timed(lambda: model.forward(ids, [(model.n_layers, "resid_post")], lambda *_: None), model.device)
    return seconds / ids.numel()


def _row_seconds(model: LensModel, backend: str) -> float:
    """Seconds that one state takes through the whole vocabulary: a backend can be twice as fast as torch's own product, or slower."""
    weight = model.parts.unembedding_weight
    part = weight[:TRIAL_TOKENS].detach()
    states = torch.zeros((TRIAL_ROWS.get(part.device.type, TRIAL_ROWS["cpu"]), part.shape[1]), dtype=part.dtype, device=part.device)
    with torch.inference_mode():
        seconds = _timed(lambda: readout(states, part, backend=backend), part.device)
    return seconds / len(states) * weight.shape[0] / len(part)


def _timed(run: Callable[[], object], device: torch.device) -> float:
    """Seconds of the fastest of TRIALS calls."""
    seconds = []
    for _ in range(TRIALS):
        start = time.perf_counter()
        run()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        seconds.append(time.perf_counter() - start)
    return min(seconds)
