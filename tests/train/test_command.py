"""The shipped configurations, and the path from analysis to an evaluated model by commands alone."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from layerlens.arithmetic import problems
from layerlens.cli import main
from layerlens.cli.train import CONFIGS, _problems, read_config, shipped_configs
from layerlens.errors import TrainingError
from tests.tiny import tiny_tokenizer

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
        assert (args.learning_rate, args.epsilon, args.delta, args.beta, args.temperature) == (1e-6, 0.2, 10.0, 0.0, 1.0)


def test_all_configurations_of_the_paper_are_there() -> None:
    assert set(PAPER) <= set(shipped_configs())


@pytest.mark.parametrize("file", sorted((CONFIGS / "accelerate").glob("*.yaml")), ids=lambda file: file.stem)
def test_accelerate_files_are_read(file: Path) -> None:
    from accelerate.commands.config.config_args import ClusterConfig

    config = ClusterConfig.from_yaml_file(yaml_file=str(file))
    assert config.num_processes in (1, 8, 32)


def test_the_plain_template_ends_where_the_answer_begins() -> None:
    tokenizer = tiny_tokenizer((CONFIGS / "templates" / "octothinker.jinja").read_text())
    text = tokenizer.apply_chat_template([{"role": "user", "content": "1+1?"}], tokenize=False, add_generation_prompt=True)
    assert text == "Question: 1+1?\nAnswer:"


def test_the_control_of_a_configuration_has_no_internal_phase(tmp_path: Path) -> None:
    _, args = read_config("tiny-qwen3-cpu", ["--output_dir", str(tmp_path), "--internal_layer", "none"])
    assert not args.trains_internally
    assert args.schedule().phases == ()


def test_arithmetic_is_drawn_from_the_difficulties_asked_for(tmp_path: Path) -> None:
    script, _ = read_config("tiny-qwen3-cpu", ["--output_dir", str(tmp_path), "--problems_difficulties", "4", "--problems_limit", "32"])
    drawn = [row["ground_truth"] for row in _problems(script)]
    assert drawn == [problem.answer for problem in problems("train", 32, script.problems_seed, difficulties=(4,))]


def test_unknown_fields_and_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match="no such configuration file; shipped are"):
        read_config("nowhere.yaml", [])
    (tmp_path / "odd.yaml").write_text("model: tiny-qwen3\nlearning_speed: 3\n")
    with pytest.raises(TrainingError, match="learning_speed"):
        read_config(str(tmp_path / "odd.yaml"), ON_CPU)


def command(monkeypatch: pytest.MonkeyPatch, *words: str) -> int:
    monkeypatch.setattr(sys, "argv", ["layerlens", *words])
    with pytest.raises(SystemExit) as end:
        main()
    return int(end.value.code or 0)


def test_from_analysis_to_an_evaluated_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    run, out, answers = str(tmp_path / "run"), tmp_path / "bupo", str(tmp_path / "answers")
    analyze = ("analyze", "tiny-qwen3", "arithmetic", "--dtype", "float32", "--limit", "4", "--max-new-tokens", "48", "--out", run)
    assert command(monkeypatch, *analyze) == 0
    assert command(monkeypatch, "select", run, "--json") == 0
    chosen = json.loads(capsys.readouterr().out.split("layerlens select " + run)[-1])
    short = ["--max_steps", "2", "--internal_steps", "1", "--per_device_train_batch_size", "8", "--num_generations", "4"]
    small = [
        "--max_completion_length",
        "24",
        "--monitor_steps",
        "2",
        "--monitor_problems",
        "2",
        "--monitor_repeats",
        "2",
        "--save_strategy",
        "no",
    ]
    layer = str(chosen["layer"] or 11)
    train = ("train", "--config", "tiny-qwen3-cpu", "--internal_layer", layer, "--output_dir", str(out), *short, *small)
    assert command(monkeypatch, *train) == 0
    assert (out / "model.safetensors").exists()
    steps = [json.loads(line)["step"] for line in (out / "monitor" / "summary.jsonl").read_text().splitlines()]
    assert steps == [0, 2]
    assert command(monkeypatch, "plot", str(out), "--out", str(tmp_path / "figures")) == 0
    assert (tmp_path / "figures" / "training.png").stat().st_size > 10_000
    evaluate = ("eval", str(out), "--tasks", "arithmetic", "--limit", "3", "--samples", "2", "--max-new-tokens", "48", "--out", answers)
    assert command(monkeypatch, *evaluate) == 0
