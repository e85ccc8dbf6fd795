"""Work that fills a folder and can be killed: what fills it, how much of it is done, what its result is, and what processes note of it."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import sys
import threading
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import wraps
from pathlib import Path
from typing import Any

from tests.support.fuzz.material import TRAIN
from tests.support.tiny_models import tiny_model, tiny_tokenizer

PROMPTS, BATCH, PROBLEMS, STEPS = 24, 4, 8, 4
GROUPS = PROMPTS // BATCH
NO_RESULT = ("time", "runtime", "per_second", "num_tokens")
"""In the names of a log's entries that tell of the clock, or of a counter that begins anew with a process."""


@dataclass(frozen=True)
class Work:
    """A command that fills a folder.

    Attributes:
        words: the command line that fills it, and goes on with it.
        done: number of pieces that are finished; they come one after another.
        between: the numbers of pieces between which kills fall.
        result: what must be alike in all finished folders.
        launched: whether the processes are one launch, which dies as one.
        at_saves: whether a process kills itself while it saves, instead of being killed after a number of pieces.
    """

    words: Callable[[Path], list[Any]]
    done: Callable[[Path], int]
    between: tuple[int, int]
    result: Callable[[Path], Any]
    launched: bool = False
    at_saves: bool = False


def works(inputs: Path) -> dict[str, list[Work]]:
    """The work of each kind; rounds take them in turn."""
    analyze = ["analyze", inputs / "model", inputs / "prompts.txt", "--max-new-tokens", 12, "--sampling-batch", BATCH, "--top-k", 2]
    evaluate = ["eval", inputs / "model", "--tasks", inputs / "problems.jsonl", "--reward", "boxed", "--answers", 3, "--no-figure"]
    evaluate += ["--max-new-tokens", 12, "--batch-size", 4]
    train = ["train", "--config", inputs / "train.yaml", "--output_dir"]

    def train_words(out: Path) -> list[Any]:
        from layerlens.train.resume import last_whole_checkpoint

        return [*train, out, *(["--resume", "true"] if last_whole_checkpoint(out) else [])]

    analysis = Work(lambda out: [*analyze, "--out", out], lambda out: count(out, "texts/0*.json", "samples/*.nc"), (0, GROUPS), analysed)
    answered = files("problems/answers/*", "problems/problems.jsonl", "problems/rounds.json")
    evaluation = Work(lambda out: [*evaluate, "--out", out], lambda out: count(out, "problems/answers/*.jsonl"), (0, PROBLEMS), answered)
    training = Work(train_words, lambda out: count(out, "checkpoint-*/trainer_state.json"), (0, STEPS), _trained, launched=True)
    return {
        "generation": [analysis],
        "readout": [replace(analysis, between=(GROUPS, GROUPS + PROMPTS))],
        "save": [replace(work, at_saves=True) for work in (analysis, evaluation, training)],
        "evaluation": [evaluation],
        "training": [training],
    }


def make_inputs(folder: Path) -> None:
    """A tiny model, prompts, problems and the configuration of a training."""
    import yaml

    tiny_model().save_pretrained(folder / "model")
    tiny_tokenizer().save_pretrained(folder / "model")
    prompts = [" ".join(f"w{(number * 7 + place * 3) % 200}" for place in range(3 + number % 4)) for number in range(PROMPTS)]
    (folder / "prompts.txt").write_text("\n".join(prompts) + "\n")
    problems = [{"prompt": prompt, "ground_truth": str(number)} for number, prompt in enumerate(prompts[:PROBLEMS])]
    (folder / "problems.jsonl").write_text("".join(json.dumps(problem) + "\n" for problem in problems))
    settings = {**TRAIN, "model": str(folder / "model"), "max_steps": STEPS, "internal_rollouts": 2, "learning_rate": 1e-2}
    settings |= {"per_device_train_batch_size": 2, "num_generations": 2, "max_completion_length": 6, "ddp_find_unused_parameters": True}
    (folder / "train.yaml").write_text(yaml.safe_dump(settings))


def watch(out: Path, save: tuple[int, float] | None) -> None:
    """In a child: notes what is sampled and written, and kills the process at its n-th save, or some seconds into it."""

    import layerlens.analysis.sampling as sampling
    import layerlens.rewards.rewards as rewards
    from layerlens.evaluate.folder import AnswerFolder
    from layerlens.results import RunFolder
    from layerlens.storage.texts import TextFolder
    from layerlens.train.base_trainer import BaseTrainer

    log = os.open(out.with_name(f"{out.name}.events"), os.O_WRONLY | os.O_APPEND | os.O_CREAT)

    def note_all(what: str, numbers: Any) -> None:
        os.write(log, "".join(f"{what} {number}\n" for number in numbers).encode())

    generate, load, replace_file = sampling.generate_responses, rewards.load_reward, os.replace
    sampling.generate_responses = lambda model, samples, generation, numbers, *more: (  # type: ignore[assignment]
        note_all("sampled", numbers), generate(model, samples, generation, numbers, *more)
    )[1]  # fmt: skip
    _after(TextFolder, "write", lambda _, group, texts: note_all("saved", texts))
    _after(RunFolder, "write", lambda folder, index, sample: note_all("measured", [index] if folder.path == out else []))
    _after(AnswerFolder, "write", lambda _, problem, answers: note_all("answered", [f"{problem}-{number}" for number in answers]))
    # of trainings, a reward that differs between answers without a process of its own
    rewards.load_reward = lambda name: letters if "train" in sys.argv else load(name)  # type: ignore[assignment,return-value]
    if save is None:
        return
    number, seconds = save
    left = iter(range(number - 1, -1, -1))

    def killing(*args: Any, **options: Any) -> None:
        last = next(left, 1) == 0
        if last and seconds < 0.05:
            os.kill(os.getpid(), signal.SIGKILL)
        replace_file(*args, **options)
        if last:
            os.kill(os.getpid(), signal.SIGKILL)

    def timed(save_checkpoint: Any) -> Any:
        @wraps(save_checkpoint)
        def saving(*args: Any, **options: Any) -> Any:
            if next(checkpoints, 1) == 0:
                timer = threading.Timer(seconds, os.kill, (os.getpid(), signal.SIGKILL))
                timer.daemon = True
                timer.start()
            return save_checkpoint(*args, **options)

        return saving

    checkpoints = iter(range(number % STEPS, -1, -1))
    if "train" in sys.argv:
        BaseTrainer._save_checkpoint = timed(BaseTrainer._save_checkpoint)
    else:
        os.replace = killing


def letters(completions: list[Any], **columns: Any) -> list[float]:
    """A reward that differs between answers and costs nothing."""
    return [float(sum(map(ord, str(answer))) % 7) for answer in completions]


def _after(owner: type, name: str, note_it: Callable[..., None]) -> None:
    method = getattr(owner, name)

    @wraps(method)
    def noted(*args: Any) -> Any:
        found = method(*args)
        note_it(*args)
        return found

    setattr(owner, name, noted)


def events(out: Path) -> dict[str, int]:
    """Of what processes noted: texts sampled, texts sampled again though they were saved, and what was written twice."""
    file = out.with_name(f"{out.name}.events")
    saved, seen, again, texts = set(), Counter[str](), 0, 0
    for line in file.read_text().splitlines() if file.exists() else []:
        what, number = line.split()
        texts += what == "sampled"
        again += what == "sampled" and number in saved
        if what == "saved":
            saved.add(number)
        if what != "sampled":
            seen[line] += 1
    return {"texts_sampled": texts, "sampled_though_saved": again, "written_twice": sum(count - 1 for count in seen.values())}


def count(out: Path, *patterns: str) -> int:
    return sum(1 for pattern in patterns for _ in out.glob(pattern))


def files(*patterns: str) -> Callable[[Path], Any]:
    def digests(out: Path) -> dict[str, str]:
        files = [file for pattern in patterns for file in out.glob(pattern) if file.is_file() and file.suffix != ".tmp"]
        return {str(file.relative_to(out)): hashlib.blake2b(file.read_bytes()).hexdigest() for file in files}

    return digests


analysed = files("texts/0*.json", "samples/*", "means/*")


def _trained(out: Path) -> dict[str, Any]:
    """Weights, log and the monitor's measurements of a training; times are left out, and the entry that sums up its last process."""
    history = json.loads((out / "trainer_state.json").read_text())["log_history"]
    told = {
        f"log of step {entry['step']}: {name}": value
        for entry in history
        if "train_loss" not in entry
        for name, value in entry.items()
        if not any(word in name for word in NO_RESULT)
    }
    made = files("model.safetensors", "monitor/summary.jsonl", "monitor/step-*/samples/*", "checkpoint-*/model.safetensors")
    return {**made(out), **told}
