"""What a checkpoint of TRL's leaves out, so that a resumed run takes the steps of a run that never stopped, bit for bit."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch.utils.data import Sampler
from transformers import TrainerCallback
from transformers.training_args import OptimizerNames
from trl import GRPOConfig
from trl.trainer.utils import RepeatSampler

from layerlens.errors import LayerLensError, TrainingError, message_of
from layerlens.storage.files import write_atomic
from layerlens.storage.training_folder import STATE

TO_RESUME = ("optimizer", "scheduler", "scaler", "rng_state", "rollout_")
"""How names begin of files that a checkpoint has beside the model's and STATE."""
ADAM = ("adamw_torch", "adamw_torch_fused")
"""Values of `optim` whose optimizer state is known to begin with zeros."""


class Shape(NamedTuple):
    """How a rollout is cut: into `per_generation` micro-batches on each of `processes`, which train on each of them `iterations` times."""

    processes: int
    per_generation: int
    iterations: int

    @property
    def micro_batches(self) -> int:
        """Micro-batches that a process trains on in a rollout."""
        return self.per_generation * self.iterations


def save_position(folder: str, process: int, shape: Shape, micro_batches: int, rollout: list[dict[str, Any]] | None) -> None:
    """Keeps how many micro-batches a process has trained on, and the batches of a rollout that is not done."""
    torch.save({"shape": list(shape), "micro_batches": micro_batches, "rollout": rollout}, position_file(folder, process))


def load_position(folder: str, process: int, shape: Shape) -> tuple[int, list[dict[str, Any]] | None] | None:
    """What `save_position` kept, on the CPU; None in a checkpoint without it.

    A process whose own file is missing gets the count of process 0, and no batches. If rollouts were cut otherwise, so many micro-batches
    are returned as the same rollouts have now, and no batches of an unfinished one.

    Raises TrainingError if the file is damaged.
    """
    mine = position_file(folder, process)
    file = mine if mine.is_file() else position_file(folder, 0)
    if not file.is_file():
        return None
    try:
        kept = torch.load(file, map_location="cpu", weights_only=True)
        before = Shape(*kept["shape"]) if "shape" in kept else shape._replace(processes=kept["processes"])  # before 0.2
        trained = kept["micro_batches"] * shape.micro_batches // before.micro_batches
        return trained, kept["rollout"] if before == shape and file == mine else None
    except Exception as error:  # a damaged file fails in many ways
        raise TrainingError(f"{file} is damaged ({message_of(error)}); remove {folder} to go on from the checkpoint before it") from error


def position_file(checkpoint: str, process: int) -> Path:
    """The file of a checkpoint that says where in its rollout a process was."""
    return Path(checkpoint) / f"rollout_{process}.pt"


def last_whole_checkpoint(folder: Path) -> Path | None:
    """The checkpoint of the most optimizer steps that was saved to its end; None without one.

    transformers writes its state last, and takes a checkpoint without it, which a killed process leaves, for the last one.
    """
    whole = [checkpoint for checkpoint in folder.glob("checkpoint-*") if steps_taken(checkpoint)]
    return max(whole, key=steps_taken, default=None)


def steps_taken(folder: Path) -> int:
    """Optimizer steps of what was saved to its end in a folder, a checkpoint or a whole training; 0 if nothing was."""
    try:
        return int(json.loads((folder / STATE).read_text(encoding="utf-8"))["global_step"])
    except (OSError, ValueError, TypeError, KeyError, OverflowError):
        return 0


def finish_from(checkpoint: Path, folder: Path) -> bool:
    """Puts a training's last checkpoint in its place as the trained model, if a run was killed between the two; whether it did.

    It does nothing if the folder holds a trained model already, or the checkpoint none (sharded ones of FSDP2).
    """
    if steps_taken(folder) >= steps_taken(checkpoint) or not any(checkpoint.glob("*.safetensors")):
        return False
    model = [file for file in checkpoint.iterdir() if file.is_file() and not file.name.startswith(TO_RESUME)]
    for file in sorted(model, key=lambda file: file.name == STATE):  # last what says that it is whole
        write_atomic(folder / file.name, partial(shutil.copy, file))
    return True


class _Begun(TrainerCallback):  # type: ignore[misc]
    """Knows whether the first step of a training has begun."""

    begun = False

    def on_step_begin(self, *args: Any, **kwargs: Any) -> None:
        self.begun = True


@contextmanager
def damage_in_one_line(trainer: Any, checkpoint: Path) -> Iterator[None]:
    """Inside, whatever goes wrong before the first step, while transformers reads the checkpoint, becomes a TrainingError of one line."""
    watch = _Begun()
    trainer.add_callback(watch)
    try:
        yield
    except LayerLensError:
        raise
    except Exception as error:  # a damaged file fails in many ways
        if watch.begun:
            raise
        why = f"{type(error).__name__}: {message_of(error)}"
        raise TrainingError(f"{checkpoint} cannot be read ({why}); remove it to go on from the checkpoint before it") from error


class EpochOrder(Sampler[int]):
    """TRL's sampler, in the order that it has in an uninterrupted run's epoch `epoch()`, counted from 0.

    TRL's own draws the next order from its generator each time it is read, so a new one always begins with the first epoch's.
    """

    def __init__(self, sampler: RepeatSampler, epoch: Callable[[], int]):
        self.sampler, self.epoch = sampler, epoch

    def __len__(self) -> int:
        return len(self.sampler)

    def __iter__(self) -> Iterator[int]:
        if self.sampler.shuffle:
            self.sampler.generator.manual_seed(self.sampler.seed)
            for _ in range(self.epoch()):
                torch.randperm(self.sampler.num_samples, generator=self.sampler.generator)
        return iter(self.sampler)


def require_resumable_fsdp(args: GRPOConfig, plugin: Any) -> None:
    """Raises TrainingError for FSDP1, and for an optimizer of which a checkpoint of an internal phase could not be resumed under FSDP2.

    A checkpoint of FSDP2 must have a state for each weight, and `fill_adam_states` knows Adam's.
    """
    if plugin.fsdp_version != 2:
        raise TrainingError(f"internal phases work with FSDP2, got FSDP{plugin.fsdp_version}: set fsdp_version: 2 in accelerate's file")
    optim = OptimizerNames(args.optim).value
    if args.save_strategy != "no" and optim not in ADAM:
        raise TrainingError(
            f"under FSDP2 a checkpoint of an internal phase can be resumed with {' or '.join(ADAM)} alone, got optim {optim}: "
            "choose one of them, or save_strategy no"
        )


def set_learning_rate(optimizer: Any, scheduler: Any, rate: float) -> None:
    """Has optimizer and scheduler, as a checkpoint left them, go on at `rate`, times each group's `layer_lr_factor`.

    Nothing changes if that is their rate. A checkpoint holds the rates of its own run, and transformers goes on at these whatever the
    configuration says.
    """
    for group in optimizer.param_groups:
        new, old = rate * group.get("layer_lr_factor", 1.0), group.get("initial_lr", group["lr"])
        if new != old:
            group["lr"] = group["lr"] * (new / old) if old else new
            group["initial_lr"] = new
    schedule = getattr(scheduler, "scheduler", scheduler)
    if hasattr(schedule, "base_lrs"):
        schedule.base_lrs = [group["initial_lr"] for group in optimizer.param_groups]
        schedule._last_lr = [group["lr"] for group in optimizer.param_groups]


def fill_adam_states(optimizer: torch.optim.Optimizer) -> None:
    """Gives each weight without a state, since it has had no gradient yet, the state that Adam makes at the first one: zeros.

    Steps do not change: Adam passes over a weight without a gradient, and begins with these zeros at the first. But torch's
    distributed checkpoint refuses to load an optimizer if a weight that needs a gradient has no state.
    """
    weights = [weight for group in optimizer.param_groups for weight in group["params"] if weight.requires_grad]
    example = next((weight for weight in weights if optimizer.state.get(weight)), None)
    if example is None:
        return
    for weight in weights:
        if not optimizer.state.get(weight):
            optimizer.state[weight] = {
                name: torch.zeros_like(value if value.ndim == 0 else weight) for name, value in optimizer.state[example].items()
            }
