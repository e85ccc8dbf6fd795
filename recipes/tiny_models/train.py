"""Training of the bundled models: `python -m recipes.tiny_models.train --model both`."""

from __future__ import annotations

import json
import platform
from collections.abc import Sequence
from copy import deepcopy
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import tokenizers
import torch
import transformers
import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from layerlens.errors import LayerLensError, TrainingError
from recipes.tiny_models import training
from recipes.tiny_models.evaluate import EvaluationSettings, evaluate_folder, print_accuracy, write_evaluation
from recipes.tiny_models.models import MODELS, new_model
from recipes.tiny_models.tokenizer import build_tokenizer
from recipes.tiny_models.training import CurvePoint, TrainingSettings


def train_folder(
    settings: TrainingSettings,
    folder: Path,
    resume: bool = True,
    device: str = "cpu",
    console: Console | None = None,
    snapshots: Sequence[int] = (),
) -> None:
    """Trains one model and writes it to `folder`: bfloat16 weights, configuration, tokenizer and `training.json`.

    The model after each step in `snapshots` is written to `step-N` in the folder. Until the folder is written,
    `<folder>.checkpoint.pt` beside it holds what is needed to resume.
    """
    tokenizer = build_tokenizer()
    model = new_model(settings.model, tokenizer, settings.seed, **settings.shape).to(device)
    checkpoint = folder.with_name(f"{folder.name}.checkpoint.pt")
    columns = ("{task.description}", "loss {task.fields[loss]:.3f}", "{task.fields[rate]:,.0f} tokens/s")
    bar = Progress(*map(TextColumn, columns), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(), console=console)
    with bar:
        task = bar.add_task(settings.model, total=settings.steps, loss=float("nan"), rate=0.0)

        def on_step(point: CurvePoint) -> None:
            if point.step in snapshots:
                _write_model(model, tokenizer, folder / f"step-{point.step}")
            bar.update(task, completed=point.step, loss=point.loss, rate=point.tokens / point.seconds)

        curve = training.train(model, tokenizer, settings, checkpoint, resume, on_step=on_step)
    _write_model(model, tokenizer, folder)
    contents = {
        "settings": asdict(settings),
        "device": device,
        "threads": torch.get_num_threads(),
        "parameters": sum(p.numel() for p in model.parameters()),
        "versions": {
            "python": platform.python_version(),
            "torch": torch.__version__,
            "transformers": transformers.__version__,
            "tokenizers": tokenizers.__version__,
        },
        "curve": [asdict(point) for point in curve],
    }
    (folder / "training.json").write_text(json.dumps(contents, indent=1) + "\n", encoding="utf-8")
    checkpoint.unlink()


def _write_model(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, folder: Path) -> None:
    deepcopy(model).to(torch.bfloat16).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def main(
    model: Annotated[str, typer.Option(help=f"{', '.join(MODELS)} or both.")] = "both",
    steps: Annotated[int, typer.Option(help="Optimizer steps.")] = TrainingSettings.steps,
    seed: Annotated[int, typer.Option(help="Seed of the initial weights and of the training problems.")] = TrainingSettings.seed,
    out: Annotated[Path, typer.Option(help="Folder that receives one folder per model.")] = Path("data/models"),
    threads: Annotated[int, typer.Option(help="CPU threads.")] = 1,
    resume: Annotated[bool, typer.Option(help="Continue from a checkpoint of an earlier call, if there is one.")] = True,
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = "cpu",
    snapshot: Annotated[
        list[int] | None, typer.Option(help="Also write the model after this step, to step-N in its folder; repeat.")
    ] = None,
    evaluate: Annotated[bool, typer.Option(help="Measure the held-out accuracy at the end.")] = True,
) -> None:
    """Train on generated problems, write the model folders, and measure their held-out accuracy."""
    torch.set_num_threads(threads)
    console = Console(stderr=True)
    try:
        if device.startswith("cuda") and not torch.cuda.is_available():
            raise TrainingError(f"expected a CUDA device for --device {device}, found none; leave --device out to train on the CPU")
        if model not in (*MODELS, "both"):
            raise TrainingError(f"expected --model {', '.join(MODELS)} or both, got {model}")
        for name in MODELS if model == "both" else (model,):
            folder = out / name
            train_folder(TrainingSettings(name, steps, seed), folder, resume, device, console, snapshot or ())
            if evaluate:
                result = evaluate_folder(folder, EvaluationSettings())
                write_evaluation(folder, result)
                print_accuracy(result, console)
    except LayerLensError as error:
        typer.echo(f"error: {error}", err=True)
        raise typer.Exit(2) from None


if __name__ == "__main__":
    typer.run(main)
