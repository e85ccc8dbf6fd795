"""How far a training run is: a bar where there is a terminal, elsewhere a short line for each entry of the log."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from transformers import PrinterCallback, ProgressCallback, TrainerCallback

from layerlens.results.training_log import PHASE

CUT_OFTEN = 0.5
"""From this share of cut answers on, their length is named as what keeps rewards alike."""


@contextmanager
def training_progress(trainer: Any, terminal: bool | None = None) -> Iterator[None]:
    """Inside, the main process shows the progress of `trainer` on stderr, in place of transformers' dictionaries of a hundred keys.

    All numbers still go into the trainer's log and wherever `report_to` says. `terminal`: whether stderr is one; by default asked.
    """
    for printer in (PrinterCallback, ProgressCallback):
        trainer.remove_callback(printer)
    shown = TrainingProgress(sys.stderr.isatty() if terminal is None else terminal) if trainer.accelerator.is_main_process else None
    if shown is not None:
        trainer.add_callback(shown)
    try:
        yield
    finally:
        if shown is not None:
            shown.close()


class TrainingProgress(TrainerCallback):  # type: ignore[misc]
    """Shows step, phase, reward, loss, entropy, seconds per optimizer step, and the time that is left."""

    def __init__(self, terminal: bool):
        self.terminal = terminal
        self.bar: Any = None
        self.task: Any = None
        self.started, self.first_step = 0.0, 0
        self.warned = False

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.started, self.first_step = time.monotonic(), state.global_step
        if self.terminal:
            self._open(state)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self.bar is not None:
            self.bar.update(self.task, completed=state.global_step)

    def on_log(self, args: Any, state: Any, control: Any, logs: Mapping[str, Any] | None = None, **kwargs: Any) -> None:
        if logs is None or "loss" not in logs:  # a snapshot of the monitor, or the end
            return
        if not self.warned and (told := nothing_to_learn(logs, args.max_completion_length)):
            self.warned = True
            self._say(f"step {state.global_step}: {told}")
        if self.bar is not None:
            self.bar.update(self.task, numbers=describe_entry(logs))
        else:
            done = state.global_step - self.first_step
            left = (time.monotonic() - self.started) / max(done, 1) * (state.max_steps - state.global_step)
            self._say(f"step {state.global_step}/{state.max_steps}  {describe_entry(logs)}  {_clock(left)} left")

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.close()

    def close(self) -> None:
        """Takes the bar away, if there is one."""
        if self.bar is not None:
            self.bar.stop()
            self.bar = None

    def _say(self, line: str) -> None:
        if self.bar is not None:
            self.bar.console.print(line, highlight=False, soft_wrap=True)
        else:
            print(line, file=sys.stderr, flush=True)

    def _open(self, state: Any) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

        columns = (
            TextColumn("optimizer steps"),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TextColumn("{task.fields[numbers]}"),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
        )
        self.bar = Progress(*columns, console=Console(stderr=True))
        self.task = self.bar.add_task("", total=state.max_steps, completed=state.global_step, numbers="")
        self.bar.start()


def describe_entry(logs: Mapping[str, Any]) -> str:
    """The policy that was trained since the last entry of the trainer's log, and what it did, in one short line.

    In an internal phase the entropy is that of the internal policy. An entry over two phases says "mixed", and both entropies.
    """
    layer = logs.get(PHASE) or 0
    policy = "final" if layer == 0 else f"layer {layer:g}" if float(layer).is_integer() else "mixed"
    numbers = [f"{name} {float(logs[name]):.4g}" for name in ("reward", "loss") if logs.get(name) is not None]
    entropies = [f"{float(logs[name]):.4g}" for name in ("internal/entropy", "entropy") if logs.get(name) is not None]
    if entropies:
        numbers.append(f"entropy {' and '.join(entropies)}")
    if logs.get("step_time") is not None:
        numbers.append(f"{float(logs['step_time']):.3g} s/step")
    return "  ".join([f"{policy:8}", *numbers])


def nothing_to_learn(logs: Mapping[str, Any], longest: int | None) -> str:
    """Why the optimizer steps of an entry could teach nothing; empty if they could, or if some of them could."""
    if logs.get("frac_reward_zero_std") != 1:
        return ""
    cut = float(logs.get("completions/clipped_ratio") or 0)
    why = f"; {cut:.0%} of the answers were cut at max_completion_length {longest}: allow more" if cut >= CUT_OFTEN and longest else ""
    return f"nothing to learn here: to each problem all answers got the same reward, so every advantage is 0{why}"


def _clock(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02}:{seconds:02}" if minutes >= 60 else f"{minutes}:{seconds:02}"
