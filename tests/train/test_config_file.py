"""Training configurations from files and from the command line: those that are shipped, and what is refused."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path

import pytest

from layerlens.errors import TrainingError
from layerlens.train.config import BuPOConfig
from layerlens.train.config_file import CONFIGS, read_config, settings_in_one_line, shipped_configs

pytestmark = pytest.mark.filterwarnings("default")  # TRL's and accelerate's own

ON_CPU = ["--use_cpu", "true", "--bf16", "false", "--use_vllm", "false", "--gradient_checkpointing", "false"]
PAPER = {"qwen3-4b": (6, 30), "qwen3-8b": (6, 20), "octothinker-3b": (27, 20), "octothinker-8b": (31, 20)}
"""The paper's layer and s_inter."""


@pytest.mark.parametrize("name", shipped_configs())
def test_shipped_configurations_are_valid(name: str, tmp_path: Path) -> None:
    script, args = read_config(name, [*ON_CPU, "--output_dir", str(tmp_path)])
    assert script.model
    if name in PAPER:
        assert (args.internal_layer, args.internal_rollouts) == PAPER[name]
        assert args.optimizer_steps(args.internal_rollouts) == 4 * args.internal_rollouts, "four optimizer steps on each rollout"
        answers = args.per_device_train_batch_size * args.steps_per_generation * 8
        assert answers == 128 * args.num_generations == 1024
        assert args.max_steps == 4 * 300
        assert (script.max_prompt_length, args.vllm_max_model_length) == (1024, 1024 + args.max_completion_length)
        assert (args.vllm_enable_sleep_mode, args.vllm_gpu_memory_utilization, args.save_total_limit) == (True, 0.6, 2)
        assert args.vllm_importance_sampling_mode == "token_truncate"
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


def test_none_takes_a_schedule_of_the_file_away(tmp_path: Path) -> None:
    (tmp_path / "two.yaml").write_text("model: tiny-qwen3\ninternal_schedule: [[4, 10], [8, 20]]\nuse_cpu: true\nbf16: false\n")
    for words, phases in (
        (["--internal_layer", "none"], ()),
        (["--internal_schedule", "none"], ()),
        (["--internal_schedule", "none", "--internal_layer", "3", "--internal_rollouts", "5"], ((3, 5),)),
    ):
        _, args = read_config(str(tmp_path / "two.yaml"), ["--output_dir", str(tmp_path), *words])
        assert args.schedule().phases == phases


def test_none_takes_distillation_and_a_mask_of_the_file_away(tmp_path: Path) -> None:
    (tmp_path / "two.yaml").write_text(
        "model: tiny-qwen3\ninternal_loss: distill\ndistill_layers: [4, 8]\ndistill_weights: positive\ntoken_signal: entropy\n"
        "token_layer: 3\ntoken_quantile: 0.5\nuse_cpu: true\nbf16: false\n"
    )

    def read(*words: str) -> BuPOConfig:
        return read_config(str(tmp_path / "two.yaml"), ["--output_dir", str(tmp_path), *words])[1]

    assert (read().distilled_layers, read().token_signal) == ((4, 8), "entropy")
    plain = read("--internal_loss", "none", "--token_signal", "none")
    assert (plain.distilled_layers, plain.distill_layers, plain.token_signal, plain.token_layer, plain.token_quantile) == (
        (), None, None, None, 0.2
    )  # fmt: skip
    assert read("--internal_loss", "none").token_layer == 3


@pytest.mark.parametrize(
    ("line", "name", "read"),
    [
        ("train_layers: 7", "train_layers", "7"), ("train_layers: [1, 2, 3, 7]", "train_layers", "1-3,7"),
        ("train_layers: null", "train_layers", "all"), ("train_layers: 1-3,7", "train_layers", "1-3,7"),
        ("internal_loss: distill\ndistill_layers: 7", "distilled_layers", (7,)),
        ("internal_loss: distill\ndistill_layers: [4, 8]", "distilled_layers", (4, 8)),
        ("internal_schedule: 4:10", "internal_schedule", [[4, 10]]), ("layer_lr_factors: 7:0.1", "layer_lr_factors", "7:0.1"),
        ("learning_rate: 2.0e-4", "learning_rate", 2e-4), ("max_steps: 0x10", "max_steps", 16),
    ],
)  # fmt: skip
def test_layers_in_a_file_are_written_as_on_the_command_line(line: str, name: str, read: object, tmp_path: Path) -> None:
    (tmp_path / "one.yaml").write_text(f"model: tiny-qwen3\nuse_cpu: true\nbf16: false\n{line}\n")
    assert getattr(read_config(str(tmp_path / "one.yaml"), ["--output_dir", str(tmp_path)])[1], name) == read


@pytest.mark.parametrize("words", [["--internal_layer", "none"], ["--internal_rollouts", "0"]])
def test_internal_layer_none_or_no_rollouts_is_the_grpo_control(words: list[str], tmp_path: Path) -> None:
    _, args = read_config("tiny-qwen3-cpu", ["--output_dir", str(tmp_path), *words])
    assert not args.trains_internally
    assert args.schedule().phases == ()


def test_a_schedule_is_read_from_a_file_and_from_the_command_line(tmp_path: Path) -> None:
    (tmp_path / "two.yaml").write_text("model: tiny-qwen3\ninternal_schedule: [[4, 10], [8, 20]]\nuse_cpu: true\nbf16: false\n")
    file = str(tmp_path / "two.yaml")
    assert read_config(file, ["--output_dir", str(tmp_path)])[1].schedule().phases == ((4, 10), (8, 20))
    other = ["--output_dir", str(tmp_path), "--internal_schedule", "2:1,6:-1"]
    assert read_config(file, other)[1].schedule().phases == ((2, 1), (6, -1))


def test_unknown_fields_and_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match="no such configuration file; shipped are"):
        read_config("nowhere.yaml", [])
    for text, told in {
        "model: tiny-qwen3\nlearning_speed: 3\n": "odd.yaml: no such field: learning_speed",
        "model: tiny-qwen3\nmax_steps: many\n": "argument --max_steps/--max-steps: invalid int value: 'many'",
        "model: [tiny\n": "odd.yaml: not YAML",
        "[" * 3000: "odd.yaml: not YAML (maximum recursion depth",
        "? [1]\n: 2\nmodel: a\n": "odd.yaml: not YAML",
        "model: tiny-qwen3\nthreads: [1, 2]\n": "odd.yaml: threads: expected int, got [1, 2]; see layerlens train --help",
        "model: tiny-qwen3\nmax_steps: null\n": "odd.yaml: max_steps: expected int, got None; see layerlens train --help",
        "model: tiny-qwen3\nlearning_rate: [1]\n": "odd.yaml: learning_rate: expected float, got [1]",
        "model: tiny-qwen3\ninternal_samples: {a: 1}\n": "odd.yaml: internal_samples: expected int, got {'a': 1}",
        "model: [tiny-qwen3]\n": "odd.yaml: model: expected str, got ['tiny-qwen3']",
        "- model\n": "odd.yaml: expected a field: value on each line, got list",
        "": "odd.yaml: expected a field: value on each line, got NoneType",
        "output_dir: x\n": "odd.yaml: which model?",
        "model: a\nmax_steps: 3\n# no\nmodel: b\n": "odd.yaml: model is given twice, in lines 1 and 4: keep one of them",
        "env: {A: 1, A: 2}\nmodel: a\n": "odd.yaml: A is given twice",
        "model: tiny-qwen3\nnum_generations: 1\n": "odd.yaml: GRPO requires at least 2 generations",
    }.items():
        (tmp_path / "odd.yaml").write_text(text)
        with pytest.raises(TrainingError, match=re.escape(told)):
            read_config(str(tmp_path / "odd.yaml"), ON_CPU)


def test_environment_variables_of_a_file_are_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LAYERLENS_TEST_VARIABLE", "before")
    (tmp_path / "env.yaml").write_text("env: {LAYERLENS_TEST_VARIABLE: 3}\nmodel: tiny-qwen3\nuse_cpu: true\nbf16: false\n")
    read_config(str(tmp_path / "env.yaml"), ["--output_dir", str(tmp_path)])
    assert os.environ["LAYERLENS_TEST_VARIABLE"] == "3"
    (tmp_path / "env.yaml").write_text("env: 3\nmodel: tiny-qwen3\n")
    with pytest.raises(TrainingError, match="expected env to hold a variable: value on each line, got int"):
        read_config(str(tmp_path / "env.yaml"), [])


def test_only_other_libraries_errors_about_settings_are_told_in_one_line() -> None:
    with (
        pytest.raises(TrainingError, match=r"^x: Expecting value: line 1 column 1 \(char 0\) \(JSONDecodeError\)$"),
        settings_in_one_line("x: "),
    ):
        json.loads("a b")
    with pytest.raises(ValueError, match="Expecting value"), settings_in_one_line(while_true=lambda: False):
        json.loads("a b")
    with pytest.raises(ValueError, match="ours"), settings_in_one_line():
        exec("raise ValueError('ours')", {"__name__": "layerlens.train.somewhere"})
    with pytest.raises(KeyError), settings_in_one_line():
        raise KeyError("a bug")
