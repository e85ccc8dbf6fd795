"""The shipped configurations, and the path from analysis to an evaluated model by commands alone."""

from __future__ import annotations

import json
import re
import sys
from importlib.resources import files
from pathlib import Path
from typing import Any, ClassVar

import pandas as pd
import pytest
from transformers import TrainerCallback
from transformers.integrations.integration_utils import INTEGRATION_TO_CALLBACK

from layerlens.cli import main
from layerlens.cli.train import CONFIGS, _fitting, _problems, make_trainer, read_config, shipped_configs
from layerlens.errors import PromptError, TrainingError
from layerlens.prompts.arithmetic import problems
from layerlens.prompts.readers import find_template
from tests.support.tiny_models import byte_tokenizer, tiny_model, tiny_tokenizer

pytestmark = pytest.mark.filterwarnings("default")  # TRL's and accelerate's own

ON_CPU = ["--use_cpu", "true", "--bf16", "false", "--use_vllm", "false", "--gradient_checkpointing", "false"]
PAPER = {"qwen3-4b": (6, 30), "qwen3-8b": (6, 20), "octothinker-3b": (27, 20), "octothinker-8b": (31, 20)}


@pytest.mark.parametrize("name", shipped_configs())
def test_shipped_configurations_are_valid(name: str, tmp_path: Path) -> None:
    script, args = read_config(name, [*ON_CPU, "--output_dir", str(tmp_path)])
    assert script.model
    if name in PAPER:
        assert (args.internal_layer, args.internal_steps) == PAPER[name]
        assert args.optimizer_steps(args.internal_steps) == 4 * args.internal_steps, "four updates a rollout step"
        answers = args.per_device_train_batch_size * args.steps_per_generation * 8
        assert answers == 128 * args.num_generations == 1024
        assert args.max_steps == 4 * 300
        assert (script.max_prompt_length, args.vllm_max_model_length) == (1024, 1024 + args.max_completion_length)
        assert (args.learning_rate, args.epsilon, args.delta, args.beta, args.temperature) == (1e-6, 0.2, 10.0, 0.0, 1.0)


def test_all_configurations_of_the_paper_are_there() -> None:
    assert set(PAPER) <= set(shipped_configs())


@pytest.mark.parametrize(
    ("name", "machines", "processes"), [("one-gpu", 1, 1), ("fsdp2-8gpu", 1, 8), ("fsdp2-multinode", 4, 32)], ids=lambda value: str(value)
)
def test_accelerate_files_make_the_papers_batches(name: str, machines: int, processes: int, tmp_path: Path) -> None:
    from accelerate.commands.config.config_args import ClusterConfig
    from accelerate.utils import FullyShardedDataParallelPlugin

    file = CONFIGS / "accelerate" / f"{name}.yaml"
    config = ClusterConfig.from_yaml_file(yaml_file=str(file))
    assert (config.num_machines, config.num_processes, config.mixed_precision) == (machines, processes, "bf16")
    if processes > 1:
        assert config.distributed_type == "FSDP"
        options = {key.removeprefix("fsdp_"): value for key, value in config.fsdp_config.items()}
        options["fsdp_version"] = options.pop("version")
        assert FullyShardedDataParallelPlugin(**options).fsdp_version == 2
    changed = re.findall(r"(--(?:gradient|steps)_\w+) (\d+)", file.read_text())  # what its comment says to change
    _, args = read_config("qwen3-4b", [*ON_CPU, "--output_dir", str(tmp_path), *(word for pair in changed for word in pair)])
    assert processes * args.per_device_train_batch_size * args.gradient_accumulation_steps == 32 * args.num_generations
    assert processes * args.per_device_train_batch_size * args.steps_per_generation == 128 * args.num_generations


def test_every_accelerate_file_is_tested() -> None:
    assert {file.stem for file in (CONFIGS / "accelerate").glob("*.yaml")} == {"one-gpu", "fsdp2-8gpu", "fsdp2-multinode"}


SYSTEM = r"Please reason step by step, and put your final answer within \boxed{}."
QWEN3 = (
    f"<|im_start|>system\n{SYSTEM}<|im_end|>\n<|im_start|>user\nWhat is 1 + 1?<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n"
)
OCTOTHINKER = (
    "<s>A conversation between User and Assistant. The user asks a question, and the Assistant solves it. The assistant first thinks about "
    "the reasoning process in the mind and then provides the user with the answer. User: You must put your answer inside \\boxed{} and "
    "Your final answer will be extracted automatically by the \\boxed{} tag.\nWhat is 1 + 1?\nAssistant:"
)
PROMPTS = {"qwen3-4b": QWEN3, "qwen3-8b": QWEN3, "octothinker-3b": OCTOTHINKER, "octothinker-8b": OCTOTHINKER}
"""The paper's figures 9 and 10, for one problem."""


@pytest.mark.parametrize("name", sorted(PAPER))
def test_each_configuration_asks_in_the_papers_words(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = [{"role": "user", "content": "What is 1 + 1?"}]
    pd.DataFrame({"prompt": [asked] * 64, "reward_model": [{"ground_truth": "2"}] * 64}).to_parquet(tmp_path / "problems.parquet")
    own = files("trl").joinpath("chat_templates/qwen3.jinja").read_text() if name.startswith("qwen3") else None
    monkeypatch.setattr("layerlens.models.load_pretrained", lambda *_, **__: (tiny_model("qwen3"), byte_tokenizer(own)))
    here = ["--problems", str(tmp_path / "problems.parquet"), "--output_dir", str(tmp_path / "out"), "--internal_layer", "2"]
    trainer = make_trainer(*read_config(name, [*ON_CPU, *here]))
    ids = trainer._tokenize_prompts([trainer.train_dataset[0]["prompt"]])[0]
    assert trainer.processing_class.decode(ids[0]) == PROMPTS[name]


def test_a_template_is_a_file_or_a_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("layerlens.models.load_pretrained", lambda *_, **__: (tiny_model("qwen3"), byte_tokenizer(None)))
    with pytest.raises(TrainingError, match="tiny-qwen3 has no chat template to ask with"):
        make_trainer(*read_config("tiny-qwen3-cpu", ["--output_dir", str(tmp_path)]))
    with pytest.raises(PromptError, match="no chat template nowhere: give a Jinja file, or one of octothinker"):
        find_template("nowhere")
    with pytest.raises(Exception, match="the OctoThinker template has no system message"):
        byte_tokenizer(find_template("octothinker")).apply_chat_template([{"role": "system", "content": "Be brief."}], tokenize=False)


def test_the_control_of_a_configuration_has_no_internal_phase(tmp_path: Path) -> None:
    _, args = read_config("tiny-qwen3-cpu", ["--output_dir", str(tmp_path), "--internal_layer", "none"])
    assert not args.trains_internally
    assert args.schedule().phases == ()


def test_arithmetic_is_drawn_from_the_difficulties_asked_for(tmp_path: Path) -> None:
    script, _ = read_config("tiny-qwen3-cpu", ["--output_dir", str(tmp_path), "--problems_difficulties", "4", "--problems_limit", "32"])
    drawn = [row["ground_truth"] for row in _problems(script)]
    assert drawn == [problem.answer for problem in problems("train", 32, script.problems_seed, difficulties=(4,))]


def test_a_schedule_is_read_from_a_file_and_from_the_command_line(tmp_path: Path) -> None:
    (tmp_path / "two.yaml").write_text("model: tiny-qwen3\ninternal_schedule: [[4, 10], [8, 20]]\nuse_cpu: true\nbf16: false\n")
    file = str(tmp_path / "two.yaml")
    assert read_config(file, ["--output_dir", str(tmp_path)])[1].schedule().phases == ((4, 10), (8, 20))
    other = ["--output_dir", str(tmp_path), "--internal_schedule", "2:1,6:-1"]
    assert read_config(file, other)[1].schedule().phases == ((2, 1), (6, -1))


def test_long_prompts_are_left_out(capsys: pytest.CaptureFixture[str]) -> None:
    asked = [{"prompt": [{"role": "user", "content": "x" * size}], "ground_truth": "1"} for size in (5, 50)]
    tokenizer = tiny_tokenizer()
    [kept] = _fitting(asked, 30, byte_tokenizer(tokenizer.chat_template), {})
    assert kept is asked[0]
    assert "1 of 2 problems left out" in capsys.readouterr().err
    with pytest.raises(TrainingError, match="every one of 2 prompts is longer than max_prompt_length=30"):
        _fitting(asked, 30, byte_tokenizer(tokenizer.chat_template + "and twenty more characters"), {})
    assert _fitting(asked, None, None, {}) is asked


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--internal_layer", "13"], "the model has 12 layers; the internal phase asks for layer 13"),
        (["--resume", "true"], "out holds no checkpoint to go on from: start without --resume true"),
        (["--threads", "-1"], "threads must be at least 1, got -1"),
        (["--lora_rank", "-2"], "lora_rank must be at least 0, got -2"),
        (["--problems_limit", "0"], "problems_limit must be at least 1, got 0"),
    ],
)
def test_what_can_not_be_trained_is_one_line(
    words: list[str], told: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "out").mkdir()
    assert command(monkeypatch, "train", "--config", "tiny-qwen3-cpu", "--output_dir", str(tmp_path / "out"), *words) == 2
    lines = capsys.readouterr().err.splitlines()
    assert [told in line for line in lines if line.startswith("layerlens: ")] == [True]
    assert not any(line.startswith(("usage", "Traceback")) for line in lines)


def test_the_reference_of_adapters_is_refused(tmp_path: Path) -> None:
    (tmp_path / "adapters").mkdir()
    (tmp_path / "adapters" / "adapter_config.json").write_text("{}")
    words = ["--model", str(tmp_path / "adapters"), "--beta", "0.1", "--output_dir", str(tmp_path / "out")]
    with pytest.raises(TrainingError, match="holds adapters, which TRL can not load as the reference of beta: give lora_rank, or beta 0"):
        make_trainer(*read_config("tiny-qwen3-cpu", words))


MISTAKES = {
    "--fiel 3": "no such field: fiel; see layerlens train --help",
    "--lerning-rate=3": "no such field: lerning_rate (close to it: learning_rate",
    "--max_step 3": "no such field: max_step (close to it: max_steps",  # an abbreviation
    "--output_dir x 3": "unexpected '3': expected --field value",
    "--max_steps many": "argument --max_steps/--max-steps: invalid int value: 'many'; see layerlens train --help",
    "--learning_rate": "argument --learning_rate/--learning-rate: expected one argument; see layerlens train --help",
    "--bf16 maybe": "argument --bf16: Truthy value expected: got maybe",
    "--optim best": "argument --optim: invalid choice: 'best'",
}


@pytest.mark.parametrize("words", MISTAKES)
def test_a_mistaken_field_is_one_line(words: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert command(monkeypatch, "train", "--config", "tiny-qwen3-cpu", *words.split()) == 2
    told = capsys.readouterr()
    assert told.out == ""
    assert told.err.startswith(f"layerlens: {MISTAKES[words]}")
    assert told.err.count("\n") == 1


def test_unknown_fields_and_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match="no such configuration file; shipped are"):
        read_config("nowhere.yaml", [])
    for text, told in {
        "model: tiny-qwen3\nlearning_speed: 3\n": "odd.yaml: no such field: learning_speed",
        "model: tiny-qwen3\nmax_steps: many\n": "argument --max_steps/--max-steps: invalid int value: 'many'",
        "model: [tiny\n": "odd.yaml: not YAML",
        "- model\n": "odd.yaml: expected a field: value on each line, got list",
        "": "odd.yaml: expected a field: value on each line, got NoneType",
        "output_dir: x\n": "odd.yaml: which model?",
    }.items():
        (tmp_path / "odd.yaml").write_text(text)
        with pytest.raises(TrainingError, match=re.escape(told)):
            read_config(str(tmp_path / "odd.yaml"), ON_CPU)


def command(monkeypatch: pytest.MonkeyPatch, *words: str) -> int:
    monkeypatch.setattr(sys, "argv", ["layerlens", *words])
    with pytest.raises(SystemExit) as end:
        main()
    return int(end.value.code or 0)


class Recorder(TrainerCallback):
    """A logging service, as transformers would start one by name."""

    entries: ClassVar[list[dict[str, float]]] = []

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        self.entries.append({"step": state.global_step, **logs})


def test_a_stopped_run_goes_on_and_reports_to_a_logger(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(INTEGRATION_TO_CALLBACK, "recorder", Recorder)
    monkeypatch.setattr(Recorder, "entries", [])
    out = tmp_path / "bupo"
    train = [
        "train", "--config", "tiny-qwen3-cpu", "--output_dir", str(out), "--report_to", "recorder", "--internal_layer", "3",
        "--internal_steps", "3", "--per_device_train_batch_size", "8", "--num_generations", "4", "--max_completion_length", "16",
        "--problems_limit", "16", "--monitor_steps", "2", "--monitor_problems", "2", "--monitor_repeats", "1", "--save_steps", "2",
    ]  # fmt: skip
    assert command(monkeypatch, *train, "--max_steps", "2") == 0
    assert command(monkeypatch, *train, "--max_steps", "4", "--resume", "true") == 0
    seen = [entry for entry in Recorder.entries if "reward" in entry]
    assert [(entry["step"], entry["bupo/internal_layer"]) for entry in seen] == [(1, 3), (2, 3), (3, 3), (4, 0)]
    assert [entry["step"] for entry in Recorder.entries if "monitor/kl/above" in entry] == [0, 2, 3, 4]
    capsys.readouterr()
    for words, told in (
        ((), "holds checkpoints of an earlier run: go on with --resume true"),
        (("--resume", "true"), "has taken all of its 4 steps (the model is in checkpoint-4): give more --max_steps"),
    ):
        assert command(monkeypatch, *train, "--max_steps", "4", *words) == 2
        assert told in capsys.readouterr().err.strip().splitlines()[-1]
    other = [word if word != "3" else "4" for word in train]
    assert command(monkeypatch, *other, "--max_steps", "6", "--resume", "true") == 2
    refusal = capsys.readouterr().err.strip().splitlines()[-1]
    assert refusal.startswith("layerlens: ")
    assert "had another schedule" in refusal

    assert command(monkeypatch, "plot", str(out), "--out", str(tmp_path / "figures"), "--json") == 0
    told = json.loads(capsys.readouterr().out)
    drawn = {Path(path).name for path in told["figures"]}
    assert drawn == {"training.png"} | {
        f"bupo-{kind}.png" for kind in ("layer-entropy", "layer-entropy-change", "modules", "refinement", "drift", "difference")
    }
    assert told["skipped"] == [reason for reason in told["skipped"] if reason.startswith("stability: ")] != []

    looks = [str(out / "monitor" / f"step-{step:06d}") for step in (0, 4)]
    difference = ["plot", *looks, "--kind", "difference", "--out", str(tmp_path / "figures")]
    assert command(monkeypatch, *difference) == 0
    assert command(monkeypatch, *difference, "--sample", "0", "--format", "svg") == 0
    assert (tmp_path / "figures" / "difference.png").exists()
    assert (tmp_path / "figures" / "difference.svg").exists()
    assert command(monkeypatch, "plot", looks[0], "--kind", "difference", "--out", str(tmp_path / "figures")) == 2
    assert "a difference is of two runs, before and after; got 1" in capsys.readouterr().err


def test_from_analysis_to_an_evaluated_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    run, out, answers = str(tmp_path / "run"), tmp_path / "bupo", str(tmp_path / "answers")
    analyze = ("analyze", "tiny-qwen3", "arithmetic", "--dtype", "float32", "--limit", "4", "--max-new-tokens", "48", "--out", run)
    assert command(monkeypatch, *analyze) == 0
    assert command(monkeypatch, "select", run, "--json") == 0
    chosen = json.loads(capsys.readouterr().out.split("layerlens select " + run)[-1])
    short = ["--max_steps", "2", "--internal_steps", "1", "--per_device_train_batch_size", "8", "--num_generations", "4"]
    small = ["--max_completion_length", "24", "--monitor_steps", "2", "--monitor_problems", "2", "--monitor_repeats", "2"]
    layer = str(chosen["layer"] or 11)
    train = (
        "train",
        "--config",
        "tiny-qwen3-cpu",
        "--internal_layer",
        layer,
        "--output_dir",
        str(out),
        "--save_strategy",
        "no",
        *short,
        *small,
    )
    assert command(monkeypatch, *train) == 0
    assert (out / "model.safetensors").exists()
    steps = [json.loads(line)["step"] for line in (out / "monitor" / "summary.jsonl").read_text().splitlines()]
    assert steps == [0, 1, 2]
    assert command(monkeypatch, "plot", str(out), "--out", str(tmp_path / "figures")) == 0
    assert (tmp_path / "figures" / "training.png").stat().st_size > 10_000
    evaluate = ("eval", str(out), "--tasks", "arithmetic", "--limit", "3", "--samples", "2", "--max-new-tokens", "48", "--out", answers)
    assert command(monkeypatch, *evaluate) == 0
