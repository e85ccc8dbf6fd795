"""Options that several verbs share, and how their texts are read."""

from __future__ import annotations

import inspect
import json
import os
import re
import shlex
import sys
import warnings
from collections.abc import Callable
from copy import copy
from dataclasses import asdict, dataclass, fields, is_dataclass, replace
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, get_type_hints

import typer

from layerlens.cli.device import pick_device
from layerlens.errors import SelectionError
from layerlens.prompts.conversation import PROMPT_COLUMNS
from layerlens.storage.training_folder import prompted_with
from layerlens.storage.versions import now
from layerlens.types import LARGEST_SEED, MOST, Library, Rows, Rule, Segment, Weighting

if TYPE_CHECKING:
    from layerlens.models import Generation
    from layerlens.prompts.sample import Sample

ModelName = Annotated[
    str, typer.Argument(metavar="MODEL", help="A hub name (Qwen/Qwen3-4B), a local folder, or a bundled model (tiny-qwen3, tiny-llama).")
]
RunFolders = Annotated[list[Path], typer.Argument(metavar="RUN", help="Run folders, as `layerlens analyze --out` made them.")]
Revision = Annotated[str | None, typer.Option(help="Branch, tag or commit on the hub.", rich_help_panel="Model")]
Dtype = Annotated[str, typer.Option(help="auto (as stored), bfloat16, float16, float32 or float64.", rich_help_panel="Model")]
Device = Annotated[
    str | None,
    typer.Option(
        help="Device to run on: cpu, cuda, cuda:1, ... [default: cuda if there is one, else cpu; under torchrun, accelerate, srun or "
        "mpirun the card of the local rank]",
        rich_help_panel="Model",
        show_default=False,
    ),
]
DeviceMap = Annotated[
    str | None,
    typer.Option(
        help="Spread the model over devices as transformers does, e.g. auto. Needs layerlens-policy[accelerate].", rich_help_panel="Model"
    ),
]
Quantize = Annotated[
    str | None,
    typer.Option(
        help="Quantise the weights while they are read: bnb-4bit or bnb-8bit (layerlens-policy[bitsandbytes]), or torchao-int8 "
        "(layerlens-policy[torchao]). A quantised checkpoint needs no option.",
        rich_help_panel="Model",
    ),
]
TrustRemoteCode = Annotated[
    bool, typer.Option("--trust-remote-code", help="Let code that comes with the model run.", rich_help_panel="Model")
]
LibraryOption = Annotated[
    Library,
    typer.Option(
        "--library",
        help="What runs the model. The numbers are the same; transformer_lens needs layerlens-policy[tl].",
        rich_help_panel="Model",
    ),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print the answer as JSON.")]


RuleOption = Annotated[
    Rule | None,
    typer.Option(
        help="boundary: end of the FFN's exploration phase (the paper's); settled: KL to the final policy stays under a tenth; skill: "
        "first with half of the final policy's skill; settling_depth: mean depth at which tokens settle; agreement: first to agree with "
        "the final policy on half of the tokens; entropy_drop: after the largest fall of entropy. [default: the first of these that names "
        "a usable layer below the last; one that names the first or last layers only because what it looks for never came, comes last]",
        show_default=False,
        metavar="<rule>",
    ),
]
RowsOption = Annotated[
    Rows, typer.Option(help="Average over the rows that predict a response token, over all, or over those of the paper's code (reference).")
]
SegmentOption = Annotated[
    Segment | None,
    typer.Option(help="Average over the rows of this segment alone, in place of --rows: what is thought, or answered.", show_default=False),
]
WeightingOption = Annotated[Weighting, typer.Option(help="Weigh samples alike, or tokens alike.")]
Tolerance = Annotated[
    float,
    typer.Option(
        help="A mean ΔS of either sign counts as zero within this share of the largest one in the lower half of the layers.",
        min=0.0,
        max=1.0,
    ),
]


@dataclass(frozen=True)
class ModelOptions:
    """How a model is loaded."""

    dtype: Dtype = "auto"
    device: Device = None
    device_map: DeviceMap = None
    quantize: Quantize = None
    revision: Revision = None
    trust_remote_code: TrustRemoteCode = False

    def keywords(self) -> dict[str, Any]:
        """What `load` and `open_engine` take, with a device chosen if none is asked for."""
        return {**asdict(self), "device": pick_device(self.device, self.device_map)}


@dataclass(frozen=True)
class SamplingOptions:
    """How responses are sampled, but for their length."""

    temperature: Annotated[float, typer.Option(help="Divides the logits before sampling; 0 takes the most likely token.", min=0.0)] = 1.0
    top_p: Annotated[float, typer.Option(help="Sample from the likeliest tokens that hold this share of the probability.")] = 1.0
    seed: Annotated[int, typer.Option(help="Seed of the sampling. Each response draws with a seed of its own, made from this one.")] = 0

    def generation(self, max_new_tokens: int) -> Generation:
        from layerlens.models import Generation

        return Generation(max_new_tokens, **asdict(self))


@dataclass(frozen=True)
class PromptOptions:
    """How prompts are read from their source and put to a model."""

    split: Annotated[str, typer.Option(help="Split of a hub dataset.")] = "test"
    column: Annotated[
        str | None,
        typer.Option(help=f"Field that holds the prompt. [default: the first there is of {', '.join(PROMPT_COLUMNS)}]", show_default=False),
    ] = None
    chat: Annotated[
        bool, typer.Option("--chat/--no-chat", help="Use the model's chat template if it has one, or the text as it stands.")
    ] = True
    system: Annotated[str | None, typer.Option(help="A system message to put in front of every prompt.")] = None
    thinking: Annotated[
        bool | None,
        typer.Option("--thinking/--no-thinking", help="Pass enable_thinking to the chat template (Qwen3's switch).", show_default=False),
    ] = None
    date: Annotated[
        str | None,
        typer.Option(
            help="The day for a chat template that writes today's, such as 2026-11-28. [default: the day (UTC) on which the folder was "
            "begun, or today]",
            show_default=False,
            metavar="DAY",
        ),
    ] = None

    def read(self, source: Any, model: Any, limit: int | None) -> list[Sample]:
        """`read_prompts` with these options."""
        from layerlens.prompts.readers import read_prompts

        options = asdict(self)
        return read_prompts(source, model, limit=limit, enable_thinking=options.pop("thinking"), **options)

    def since(self, *manifests: Path) -> PromptOptions:
        """These options, with the day on which the first manifest that is there was begun, or today's, if no day was named.

        A folder is so continued on another day with the same prompts, even if the chat template writes the date.
        """
        begun = next(filter(None, map(_created, manifests)), None) or now()
        return replace(self, date=self.date or begun[:10])

    def warn_of_training(self, model: str) -> None:
        """Warns if a model was trained on prompts with a system message or a switch that these options leave out."""
        system, thinking = prompted_with(model) if self.chat else (None, None)
        missing = [f"--system {shlex.quote(system)}"] if system is not None and self.system is None else []
        missing += [f"--{'' if thinking else 'no-'}thinking"] if thinking is not None and self.thinking is None else []
        if missing:
            warnings.warn(f"{model} was trained on prompts with {' and '.join(missing)}: add this to ask in the same way", stacklevel=2)


def _created(manifest: Path) -> str | None:
    """When a manifest was made; None if there is none, or a damaged one, which is told of where it is read as a whole."""
    try:
        return str(json.loads(manifest.read_text(encoding="utf-8"))["created"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def grouped(command: Callable[..., None]) -> Callable[..., None]:
    """The command as typer reads it: each parameter that is a dataclass of options stands as those options, in its place.

    `Annotated[PromptOptions, "Problems"]` lists them in that panel of the help.
    """
    groups: dict[str, type] = {}
    shown: list[inspect.Parameter] = []
    for parameter in inspect.signature(command, eval_str=True).parameters.values():
        group = getattr(parameter.annotation, "__origin__", parameter.annotation)
        if not (isinstance(group, type) and is_dataclass(group)):
            shown.append(parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY))
            continue
        groups[parameter.name] = group
        shown += _options_of(group, *getattr(parameter.annotation, "__metadata__", ()))

    @wraps(command)
    def run(**given: Any) -> None:
        for name, group in groups.items():
            given[name] = group(**{field.name: given.pop(field.name) for field in fields(group)})
        command(**given)

    run.__signature__ = inspect.Signature(shown)  # type: ignore[attr-defined]
    return run


def named_options(group: Any) -> list[str]:
    """The options of a dataclass of options whose values are not the defaults, as they are typed."""
    default = type(group)()
    return [
        f"--{'no-' if getattr(group, field.name) is False else ''}{field.name.replace('_', '-')}"
        for field in fields(group)
        if getattr(group, field.name) != getattr(default, field.name)
    ]


def in_bounds(command: Callable[..., None]) -> Callable[..., None]:
    """The command, refusing whole numbers that are too large for what they count, whichever option has them."""

    @wraps(command)
    def run(**given: Any) -> None:
        for name, value in given.items():
            most = LARGEST_SEED if "seed" in name else MOST
            if isinstance(value, int) and abs(value) > most:
                raise SelectionError(f"--{name.replace('_', '-')} must be at most {most:,}, got {value}")
        command(**given)

    run.__signature__ = inspect.signature(command, eval_str=True)  # type: ignore[attr-defined]
    return run


def _options_of(group: type, panel: str | None = None) -> list[inspect.Parameter]:
    """A parameter for each field, its option in the panel if one is named."""
    hints = get_type_hints(group, include_extras=True)
    parameters = []
    for field in fields(group):
        option = copy(hints[field.name].__metadata__[0])
        option.rich_help_panel = panel or option.rich_help_panel
        annotation = Annotated[hints[field.name].__origin__, option]  # type: ignore[valid-type]
        parameters.append(inspect.Parameter(field.name, inspect.Parameter.KEYWORD_ONLY, default=field.default, annotation=annotation))
    return parameters


def parse_layers(text: str) -> str | list[int]:
    """ "all", or numbers and ranges such as "1-6,12", counted from 1."""
    if text == "all":
        return text
    layers: list[int] = []
    for part in text.split(","):
        span = re.fullmatch(r"([0-9]{1,4})(?:-([0-9]{1,4}))?", part.strip())
        if span is None:
            raise SelectionError(f"layers must be 'all' or like 1-6,12, got {text!r}")
        layers.extend(range(int(span[1]), int(span[2] or span[1]) + 1))
    return layers


def parse_count(text: str | None) -> int | Literal["auto"] | None:
    """None, "auto" or a number of 1 or more."""
    if text is None or text == "auto":
        return text  # type: ignore[return-value]
    if not re.fullmatch(r"[1-9][0-9]{0,8}", text):
        raise SelectionError(f"tokens per sample must be 'auto' or a number of 1 or more, got {text!r}")
    return int(text)


def parse_shard(text: str | None) -> tuple[int, int] | None:
    """ "3/8" as (3, 8); of "auto" the place of this job in Slurm's array, counted from 1."""
    if text is None:
        return None
    if text == "auto":
        task, first, count = (os.environ.get(f"SLURM_ARRAY_TASK_{name}", "") for name in ("ID", "MIN", "COUNT"))
        if not (task.isdigit() and count.isdigit()):
            raise SelectionError(
                "--shard auto is for jobs of a Slurm array (SLURM_ARRAY_TASK_ID and _COUNT are not set): name it, as in 3/8"
            )
        text = f"{int(task) - int(first or 0) + 1}/{count}"
    found = re.fullmatch(r"([0-9]{1,6})/([0-9]{1,6})", text)
    if found is None or not 1 <= int(found[1]) <= int(found[2]):
        raise SelectionError(f"shard must be i/n with 1 ≤ i ≤ n, got {text!r}")
    return int(found[1]), int(found[2])


def parse_names(text: str) -> str | list[str]:
    """ "all", or names separated by commas, among which "all" may be."""
    return text if text == "all" else [name.strip() for name in text.split(",") if name.strip()]


def print_json(value: Any) -> None:
    """The answer on stdout, where a script reads it."""
    json.dump(value, sys.stdout, indent=2, ensure_ascii=False, allow_nan=False)
    sys.stdout.write("\n")
