"""`layerlens train`: BuPO from a YAML file."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer

from layerlens.errors import TrainingError
from layerlens.storage.bundled import bundled_model

if TYPE_CHECKING:
    from layerlens.train import BuPOTrainer

CONFIGS = Path(__file__).parents[1] / "train" / "configs"


def shipped_configs() -> list[str]:
    """Names of the configurations that come with layerlens."""
    return sorted(file.stem for file in CONFIGS.glob("*.yaml"))


@dataclass
class TrainScript:
    """What is trained on what, beside BuPOConfig's settings."""

    model: str = field(default="", metadata={"help": "A hub name, a folder, or a bundled model."})
    problems: str = field(
        default="arithmetic", metadata={"help": "Training problems: a prompts file with ground truths, a hub dataset, or arithmetic."}
    )
    problems_limit: int | None = field(default=None, metadata={"help": "Read only so many."})
    problems_split: str = field(default="train", metadata={"help": "Split of a hub dataset."})
    problems_seed: int = field(default=0, metadata={"help": "Seed of generated arithmetic problems."})
    problems_difficulties: list[int] | None = field(
        default=None, metadata={"help": "Draw arithmetic problems of these difficulties only (1 the easiest, 4); default: all."}
    )
    max_prompt_length: int | None = field(
        default=None, metadata={"help": "Leave out problems whose prompt is longer than this, in tokens; default: keep all."}
    )
    system: str | None = field(default=None, metadata={"help": "A system message to put in front of every problem."})
    chat_template: str | None = field(
        default=None, metadata={"help": "A Jinja chat template (a file, or octothinker) in place of the model's own."}
    )
    reward: str = field(default="math", metadata={"help": "math, boxed, arithmetic, or module:function."})
    dtype: str = field(default="auto", metadata={"help": "Of the weights: auto, bfloat16, float16 or float32."})
    threads: int | None = field(default=None, metadata={"help": "CPU threads; small models are fastest with 1."})
    resume: bool = field(default=False, metadata={"help": "Go on from the last checkpoint in output_dir."})
    lora_rank: int = field(default=0, metadata={"help": "Train LoRA adapters of this rank instead of all weights; 0: all weights."})
    lora_alpha: int = field(default=32, metadata={"help": "LoRA's alpha."})

    def __post_init__(self) -> None:
        least = {"problems_limit": 1, "max_prompt_length": 1, "threads": 1, "lora_rank": 0}
        for name, low in least.items():
            given = getattr(self, name)
            if given is not None and given < low:
                raise TrainingError(f"{name} must be at least {low}, got {given}")


def train(
    config: Annotated[str, typer.Option("--config", "-c", help=f"A YAML file, or a shipped one by name: {', '.join(shipped_configs())}.")],
    changes: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="--FIELD VALUE",
            help="Fields of the file, to change them or to add to them. What is trained on what: "
            f"{', '.join(each.name for each in fields(TrainScript))}. How: every field of BuPOConfig (internal_layer, internal_steps, "
            "output_dir, ...; docs/training.md) and so of TRL's GRPOConfig.",
        ),
    ] = None,
) -> None:
    """Train a model with BuPO: the chosen layer's policy for some rollout steps, then the whole policy.

    A field of the configuration file that is also given on the command line is taken from there. To go on after a stop: the same
    command with --resume true. For several processes: torchrun or accelerate launch -m layerlens train ... Needs layerlens-policy[train].

    Example: layerlens train --config tiny-qwen3-cpu --internal_layer 11 --output_dir bupo
    """
    script, args = read_config(config, changes or [])
    run_training(script, args)


def read_config(name: str, overrides: Sequence[str]) -> tuple[TrainScript, Any]:
    """The two halves of a configuration file, with what the command line changes.

    Raises TrainingError on a file that can not be read, a field that neither half has, or a value that does not suit its field.
    """
    from layerlens.train import BuPOConfig  # which says what to do about a missing TRL

    from trl import TrlParser  # isort: skip

    class Parser(TrlParser):  # type: ignore[misc]
        def error(self, message: str) -> NoReturn:  # argparse's own prints the usage of some two hundred fields and exits
            raise TrainingError(f"{message.rstrip('.')}; see layerlens train --help")

    file = CONFIGS / f"{name}.yaml" if name in shipped_configs() else Path(name)
    if not file.is_file():
        raise TrainingError(f"{name}: no such configuration file; shipped are {', '.join(shipped_configs())}")
    # an abbreviation would mean another field as soon as TRL has a new one
    parser = Parser((TrainScript, BuPOConfig), allow_abbrev=False)
    known = [each.name for half in (TrainScript, BuPOConfig) for each in fields(half)]
    # both before a configuration is built, which prints other libraries' warnings
    _refuse_unknown(parser.set_defaults_with_config(**_read_yaml(file)), known, f"{file}: ")
    _refuse_unknown(parser.parse_known_args(overrides)[1], known)
    try:
        script, args = parser.parse_args_and_config(["--config", str(file), *overrides])
    except ValueError as error:
        raise TrainingError(f"{file}: {error}") from error
    if not script.model:
        raise TrainingError(f"{file}: which model? give model: in the file or --model")
    return script, args


def _read_yaml(file: Path) -> dict[str, Any]:
    """The fields that a configuration file sets; TRL takes `env` out, for the environment."""
    import yaml

    try:
        found = yaml.safe_load(file.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise TrainingError(f"{file}: not YAML ({error})") from error
    if not isinstance(found, dict):
        raise TrainingError(f"{file}: expected a field: value on each line, got {type(found).__name__}")
    return {str(name): value for name, value in found.items() if name != "env"}


def _refuse_unknown(words: Sequence[str], known: Sequence[str], where: str = "") -> None:
    """Raises TrainingError for the first of the words that a parser had no field for."""
    if not words:
        return
    if not words[0].startswith("--"):
        raise TrainingError(f"{where}unexpected {words[0]!r}: expected --field value; see layerlens train --help")
    name = words[0].removeprefix("--").partition("=")[0].replace("-", "_")
    close = ", ".join(get_close_matches(name, known))
    raise TrainingError(f"{where}no such field: {name}{f' (close to it: {close})' if close else ''}; see layerlens train --help")


def run_training(script: TrainScript, args: Any) -> None:
    """Trains, saves the model into `output_dir`, and leaves monitor and log beside it."""
    done = _steps_done(Path(args.output_dir))
    if script.resume and not done:
        raise TrainingError(f"{args.output_dir} holds no checkpoint to go on from: start without --resume true")
    if script.resume and 0 < args.max_steps <= done:  # transformers would take a step beyond
        raise TrainingError(
            f"{args.output_dir} has taken all of its {args.max_steps} steps (the model is in checkpoint-{done}): give more --max_steps"
        )
    if done and not script.resume:  # two runs would be mixed, and --resume true go on with either
        raise TrainingError(f"{args.output_dir} holds checkpoints of an earlier run: go on with --resume true, or take a new output_dir")
    trainer = make_trainer(script, args)
    trainer.train(resume_from_checkpoint=script.resume or None)
    trainer.save_model()
    trainer.save_state()
    if trainer.accelerator.is_main_process:
        print(f"trained model  {args.output_dir}")


def _steps_done(folder: Path) -> int:
    """Optimizer steps of the last checkpoint, 0 where there is none."""
    from transformers.trainer_utils import get_last_checkpoint

    last = get_last_checkpoint(folder) if folder.is_dir() else None
    return int(last.rpartition("-")[-1]) if last else 0


def make_trainer(script: TrainScript, args: Any) -> BuPOTrainer:
    """The trainer of a configuration: model, tokenizer with its template, problems and reward loaded."""
    import torch
    from datasets import Dataset

    from layerlens.models import holds_adapters, load_pretrained
    from layerlens.prompts.readers import find_template
    from layerlens.rewards.rewards import load_reward
    from layerlens.train import BuPOTrainer

    if args.beta and not script.lora_rank and holds_adapters(script.model):
        raise TrainingError(f"{script.model} holds adapters, which TRL can not load as the reference of beta: give lora_rank, or beta 0")
    if script.threads:
        torch.set_num_threads(script.threads)
    model, tokenizer = load_pretrained(bundled_model(script.model) or script.model, dtype=script.dtype)
    if script.chat_template:
        tokenizer.chat_template = find_template(script.chat_template)
    if tokenizer.chat_template is None:
        raise TrainingError(f"{script.model} has no chat template to ask with: give chat_template, a Jinja file or octothinker")
    problems = Dataset.from_list(_fitting(_problems(script), script.max_prompt_length, tokenizer, args.chat_template_kwargs or {}))
    return BuPOTrainer(
        model, load_reward(script.reward), args, train_dataset=problems, processing_class=tokenizer, peft_config=_lora(script)
    )


def _fitting(problems: list[dict[str, Any]], longest: int | None, tokenizer: Any, template: dict[str, Any]) -> list[dict[str, Any]]:
    """The problems whose prompt has no more tokens than that, template included; TRL itself neither cuts nor drops a prompt."""
    if longest is None:
        return problems
    options = {"add_generation_prompt": True, "return_dict": False, **template}
    kept = [problem for problem in problems if len(tokenizer.apply_chat_template(problem["prompt"], **options)) <= longest]
    if not kept:
        raise TrainingError(f"every one of {len(problems)} prompts is longer than max_prompt_length={longest} tokens: allow more")
    if len(kept) < len(problems):
        print(f"{len(problems) - len(kept)} of {len(problems)} problems left out: longer than {longest} tokens", file=sys.stderr)
    return kept


def _problems(script: TrainScript) -> list[dict[str, Any]]:
    from layerlens.prompts.readers import read_problems

    if script.problems != "arithmetic":
        return read_problems(script.problems, limit=script.problems_limit, split=script.problems_split, system=script.system)
    from layerlens.prompts.arithmetic import problems

    drawn = problems("train", script.problems_limit or 2048, script.problems_seed, difficulties=script.problems_difficulties)
    return read_problems([{"prompt": list(problem.prompt), "ground_truth": problem.answer} for problem in drawn], system=script.system)


def _lora(script: TrainScript) -> Any:
    if not script.lora_rank:
        return None
    from peft import LoraConfig

    return LoraConfig(r=script.lora_rank, lora_alpha=script.lora_alpha, target_modules="all-linear", task_type="CAUSAL_LM")
