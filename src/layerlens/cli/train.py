"""`layerlens train`: BuPO from a YAML file."""

from __future__ import annotations

import sys
import warnings
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperCommand

from layerlens.errors import TrainingError
from layerlens.storage.bundled import bundled_model
from layerlens.train.config_file import read_config, settings_in_one_line, settings_of, shipped_configs
from layerlens.train.fields import BuPOFields, ScriptArguments, describe_fields

if TYPE_CHECKING:
    from layerlens.train import BuPOConfig, BuPOTrainer


def _list_fields(cls: type) -> str:
    """The fields as a list in Markdown, for the help."""
    return "\n".join(f"- `{name}`: {text}" for name, text in describe_fields(cls))


def train(
    config: Annotated[str, typer.Option("--config", "-c", help=f"A YAML file, or a shipped one by name: {', '.join(shipped_configs())}.")],
    changes: Annotated[
        list[str] | None,
        typer.Argument(metavar="--FIELD VALUE", help="Fields to change or to add, which win over those of the configuration file."),
    ] = None,
) -> None:
    # of names that TRL itself uses, which a reader can do nothing about
    warnings.filterwarnings("ignore", "`(is_)?gradient_checkpointing(_kwargs)?` is deprecated", FutureWarning)
    script, args = read_config(config, changes or [])
    run_training(script, args)


train.__doc__ = f"""Train a model with BuPO: first the internal policy of a chosen layer, for some rollouts, then the final policy (GRPO).

The same command with --resume true continues a run that was stopped. On several processes: torchrun, or accelerate launch -m
layerlens train ... Needs layerlens-policy[train]. TRL trains models of transformers, so there is no --library here.

Examples: layerlens train --config tiny-qwen3-cpu --internal_layer 11 --output_dir bupo

layerlens select RUN --json > choice.json; layerlens train --config qwen3-4b --internal_layer choice.json

layerlens train --config qwen3-4b --help ends with the settings of that configuration.

**Fields for what is loaded**

{_list_fields(ScriptArguments)}

**Fields for how it is trained**

{_list_fields(BuPOFields)}
- all fields of TRL's GRPOConfig (output_dir, max_steps, learning_rate, ...)
"""


class TrainCommand(TyperCommand):
    """`layerlens train`, whose help ends with the settings of the configuration that stands beside --help."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        if {"-h", "--help"} & set(args) and (name := _named_config(args)):
            lines = [f"- `{field}`: {value}" for field, value in settings_of(name).items()]
            self.help = "\n".join([self.help or "", f"**Settings of {name}**", "", *lines])
        return super().parse_args(ctx, args)


def _named_config(words: list[str]) -> str | None:
    """The value of --config among the words of the command line; None without."""
    for word, following in zip(words, [*words[1:], ""], strict=True):
        if word.startswith("--config="):
            return word.partition("=")[2]
        if word in ("--config", "-c"):
            return following
    return None


def run_training(script: ScriptArguments, args: BuPOConfig) -> None:
    """Trains, and saves the model into `output_dir`, beside the monitor's snapshots and the log.

    Raises TrainingError if `output_dir` holds another run or another model, or with `resume` none that could go on with these settings.
    """
    from layerlens.results.training_log import is_training
    from layerlens.storage.launch import rank
    from layerlens.train.resume import damage_in_one_line, finish_from, last_whole_checkpoint, steps_taken
    from layerlens.train.settings_file import KeepSettings, changed_settings, describe_changes, settings_to_keep
    from layerlens.train.training_progress import training_progress

    checkpoint = last_whole_checkpoint(Path(args.output_dir))
    done = steps_taken(checkpoint) if checkpoint else 0
    if script.resume and not done:
        raise TrainingError(f"{args.output_dir} holds no checkpoint to go on from: start without --resume true")
    if script.resume and checkpoint and 0 < args.max_steps <= done:  # transformers would take a step beyond
        if rank():  # the first process says, or does, what there is
            return
        if finish_from(checkpoint, Path(args.output_dir)):
            print(f"trained model  {args.output_dir}")
            return
        shards = checkpoint / "pytorch_model_fsdp_0"
        if steps_taken(Path(args.output_dir)) >= done:
            state = "and holds the trained model:"
        elif shards.is_dir():
            state = f"with the model in shards: accelerate merge-weights {shards} FOLDER joins its weights, or"
        else:
            state = f"but {checkpoint} holds no whole model:"
        raise TrainingError(f"{args.output_dir} has taken all of its {args.max_steps} steps, {state} give more --max_steps")
    if done and not script.resume:  # two runs would be mixed, and --resume true go on with either
        raise TrainingError(f"{args.output_dir} holds checkpoints of an earlier run: go on with --resume true, or take a new output_dir")
    if (Path(args.output_dir) / "config.json").exists() and not is_training(args.output_dir):
        raise TrainingError(f"{args.output_dir} holds a model or a lens, which the trained model would replace: take a new output_dir")
    if not done and any((Path(args.output_dir) / name).exists() for name in ("run.json", "eval.json")):
        raise TrainingError(f"{args.output_dir} holds a run or an evaluation, which the training would hide: take a new output_dir")
    if args.eval_strategy != "no":
        raise TrainingError("layerlens train evaluates nothing while it trains: leave eval_strategy no, and use layerlens eval")
    settings = settings_to_keep(script, args)
    changes = changed_settings(Path(args.output_dir), settings) if script.resume else {}
    args.resume_from_checkpoint = str(checkpoint) if script.resume else None
    trainer = make_trainer(script, args)
    trainer.add_callback(KeepSettings(Path(args.output_dir), settings, changes))
    if changes and trainer.accelerator.is_main_process:
        print(f"{'changed since the run began':34}  {describe_changes(changes)}", file=sys.stderr)
    if script.reward == "boxed" and trainer.accelerator.is_main_process:
        print(
            f"{'reward boxed':34}  the text in the box is that of the ground truth, letter by letter; math compares values", file=sys.stderr
        )
    loading = damage_in_one_line(trainer, checkpoint) if checkpoint and script.resume else nullcontext()
    with settings_in_one_line(while_true=lambda: trainer.state.global_step <= done), training_progress(trainer), loading:
        trainer.train(resume_from_checkpoint=args.resume_from_checkpoint)
    if trainer.is_fsdp_enabled:  # transformers writes no model from shards, which checkpoints may be in
        trainer.accelerator.state.fsdp_plugin.set_state_dict_type("FULL_STATE_DICT")
    trainer.save_model()
    trainer.create_model_card()
    trainer.save_state()
    if trainer.accelerator.is_main_process:
        print(f"trained model  {args.output_dir}")


def make_trainer(script: ScriptArguments, args: BuPOConfig) -> BuPOTrainer:
    """Loads model, tokenizer with its template, problems and reward, and makes the trainer.

    Raises TrainingError for what cannot be trained, before the weights are read if the configuration alone tells.
    """
    import torch
    from datasets import Dataset

    from layerlens.models import holds_adapters, load_pretrained
    from layerlens.prompts.chat_template import accepted_messages, render_chat
    from layerlens.prompts.readers import find_template
    from layerlens.rewards.rewards import load_reward
    from layerlens.train import BuPOTrainer
    from layerlens.train.layer_choice import require_layers

    name = str(bundled_model(script.model) or script.model)
    adapters = holds_adapters(name)
    if args.beta and not script.lora_rank and adapters:
        raise TrainingError(f"{script.model} holds adapters, which TRL cannot load as the reference of beta: give lora_rank, or beta 0")
    if args.layer_choice and not adapters:
        require_layers(name, args)
    if script.threads:
        torch.set_num_threads(script.threads)
    model, tokenizer = load_pretrained(name, dtype=script.dtype)[:2]
    _make_savable(model.generation_config)
    if script.chat_template:
        tokenizer.chat_template = find_template(script.chat_template)
    if tokenizer.chat_template is None:
        raise TrainingError(f"{script.model} has no chat template to ask with: give chat_template, a Jinja file or octothinker")
    if tokenizer.eos_token is None:
        raise TrainingError(f"{script.model} has no EOS token, so its answers would not end: name one in its tokenizer_config.json")
    options = args.chat_template_kwargs or {}
    asked = [{**problem, "prompt": accepted_messages(problem["prompt"], tokenizer, options)} for problem in _problems(script)]
    render_chat(asked[0]["prompt"], tokenizer, options, "0")  # a template that refuses it is told of here, and not in TRL
    problems = Dataset.from_list(_fitting(asked, script.max_prompt_length, tokenizer, options))
    reward = load_reward(script.reward)
    with settings_in_one_line():
        return BuPOTrainer(model, reward, args, train_dataset=problems, processing_class=tokenizer, peft_config=_lora(script))


def _make_savable(config: Any) -> None:
    """Corrects generation settings that transformers reads, but refuses to write with the trained model: a temperature without sampling.

    Raises TrainingError if they cannot be written even so.
    """
    try:
        config.validate(strict=True)
    except ValueError:
        config.do_sample = True
        with settings_in_one_line("generation_config.json: "):
            config.validate(strict=True)


def _fitting(problems: list[dict[str, Any]], longest: int | None, tokenizer: Any, template: dict[str, Any]) -> list[dict[str, Any]]:
    """The problems whose prompt has at most `longest` tokens, template included; TRL itself neither cuts nor drops a prompt."""
    from layerlens.prompts.chat_template import limited_time

    if longest is None:
        return problems
    options = {"add_generation_prompt": True, "return_dict": False, **template}
    lengths = []
    for number, problem in enumerate(problems):
        with limited_time(str(number)):
            lengths.append(len(tokenizer.apply_chat_template(problem["prompt"], **options)))
    kept = [problem for problem, length in zip(problems, lengths, strict=True) if length <= longest]
    if not kept:
        raise TrainingError(f"every one of {len(problems)} prompts is longer than max_prompt_length={longest} tokens: allow more")
    if len(kept) < len(problems):
        print(f"{len(problems) - len(kept)} of {len(problems)} problems left out: longer than {longest} tokens", file=sys.stderr)
    return kept


def _problems(script: ScriptArguments) -> list[dict[str, Any]]:
    from layerlens.prompts.readers import read_problems

    if script.problems != "arithmetic":
        return read_problems(script.problems, limit=script.problems_limit, split=script.problems_split, system=script.system)
    from layerlens.prompts.arithmetic import problems

    drawn = problems("train", script.problems_limit or 2048, script.problems_seed, difficulties=script.problems_difficulties)
    return read_problems([{"prompt": list(problem.prompt), "ground_truth": problem.answer} for problem in drawn], system=script.system)


def _lora(script: ScriptArguments) -> Any:
    if not script.lora_rank:
        return None
    from peft import LoraConfig

    return LoraConfig(r=script.lora_rank, lora_alpha=script.lora_alpha, target_modules="all-linear", task_type="CAUSAL_LM")
