"""What `layerlens train` loads and refuses, and the path from analysis to an evaluated model by commands alone."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import fields
from importlib.resources import files
from pathlib import Path
from typing import Any, ClassVar

import pandas as pd
import pytest
from transformers import GenerationConfig, TrainerCallback
from transformers.integrations.deepspeed import unset_hf_deepspeed_config
from transformers.integrations.integration_utils import INTEGRATION_TO_CALLBACK

from layerlens.cli.train import _fitting, _make_savable, _problems, make_trainer
from layerlens.errors import PromptError, TrainingError
from layerlens.prompts.arithmetic import problems
from layerlens.prompts.readers import find_template
from layerlens.selection import select_layer
from layerlens.train import BuPOTrainer
from layerlens.train.config_file import read_config
from layerlens.train.fields import BuPOFields, ScriptArguments
from layerlens.types import RULES
from tests.support.command_line import command
from tests.support.synthetic_runs import make_run
from tests.support.tiny_models import byte_tokenizer, tiny_model, tiny_tokenizer

pytestmark = pytest.mark.filterwarnings("default")  # TRL's and accelerate's own

ON_CPU = ["--use_cpu", "true", "--bf16", "false", "--use_vllm", "false", "--gradient_checkpointing", "false"]


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


@pytest.mark.parametrize("name", sorted(PROMPTS))
def test_prompts_of_each_paper_configuration_are_the_papers(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = [{"role": "user", "content": "What is 1 + 1?"}]
    pd.DataFrame({"prompt": [asked] * 64, "reward_model": [{"ground_truth": "2"}] * 64}).to_parquet(tmp_path / "problems.parquet")
    own = files("trl").joinpath("chat_templates/qwen3.jinja").read_text() if name.startswith("qwen3") else None
    monkeypatch.setattr("layerlens.models.load_pretrained", lambda *_, **__: (tiny_model("qwen3"), byte_tokenizer(own)))
    here = ["--problems", str(tmp_path / "problems.parquet"), "--output_dir", str(tmp_path / "out"), "--internal_layer", "2"]
    trainer = make_trainer(*read_config(name, [*ON_CPU, *here]))
    ids = trainer._tokenize_prompts([trainer.train_dataset[0]["prompt"]])[0]
    assert trainer.processing_class.decode(ids[0]) == PROMPTS[name]


def test_chat_template_is_a_file_or_a_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("layerlens.models.load_pretrained", lambda *_, **__: (tiny_model("qwen3"), byte_tokenizer(None)))
    with pytest.raises(TrainingError, match="tiny-qwen3 has no chat template to ask with"):
        make_trainer(*read_config("tiny-qwen3-cpu", ["--output_dir", str(tmp_path)]))
    nameless = byte_tokenizer(tiny_tokenizer().chat_template)
    nameless.eos_token = None
    monkeypatch.setattr("layerlens.models.load_pretrained", lambda *_, **__: (tiny_model("qwen3"), nameless))
    with pytest.raises(TrainingError, match="tiny-qwen3 has no EOS token, so its answers would not end"):
        make_trainer(*read_config("tiny-qwen3-cpu", ["--output_dir", str(tmp_path)]))
    with pytest.raises(PromptError, match="no chat template nowhere: give a Jinja file, or one of octothinker"):
        find_template("nowhere")
    with pytest.raises(Exception, match="the OctoThinker template has no system message"):
        byte_tokenizer(find_template("octothinker")).apply_chat_template([{"role": "system", "content": "Be brief."}], tokenize=False)


def test_system_message_that_a_template_refuses_is_asked_in_the_user_turn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    strict = "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system') }}{% endif %}" + tiny_tokenizer().chat_template
    monkeypatch.setattr("layerlens.models.load_pretrained", lambda *_, **__: (tiny_model("qwen3"), byte_tokenizer(strict)))
    here = [*ON_CPU, "--output_dir", str(tmp_path / "out"), "--internal_layer", "2", "--system", "Be brief."]
    with pytest.warns(UserWarning, match=r"the chat template takes no system message \(no system\)"):
        trainer = make_trainer(*read_config("tiny-qwen3-cpu", here))
    [message] = trainer.train_dataset[0]["prompt"]
    assert message["role"] == "user"
    assert message["content"].startswith("Be brief.\n\n")
    monkeypatch.setattr("layerlens.models.load_pretrained", lambda *_, **__: (tiny_model("qwen3"), byte_tokenizer("{{ 1 // 0 }}")))
    with pytest.raises(PromptError, match="prompt 0: the chat template refuses it"):
        make_trainer(*read_config("tiny-qwen3-cpu", here))


def test_arithmetic_problems_have_the_difficulties_asked_for(tmp_path: Path) -> None:
    script, _ = read_config("tiny-qwen3-cpu", ["--output_dir", str(tmp_path), "--problems_difficulties", "4", "--problems_limit", "32"])
    drawn = [row["ground_truth"] for row in _problems(script)]
    assert drawn == [problem.answer for problem in problems("train", 32, script.problems_seed, difficulties=(4,))]


def test_max_prompt_length_leaves_out_longer_prompts(capsys: pytest.CaptureFixture[str]) -> None:
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
def test_what_cannot_be_trained_is_told_in_one_line(
    words: list[str], told: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "out").mkdir()
    assert command(monkeypatch, "train", "--config", "tiny-qwen3-cpu", "--output_dir", str(tmp_path / "out"), *words) == 2
    lines = capsys.readouterr().err.splitlines()
    assert [told in line for line in lines if line.startswith("layerlens: ")] == [True]
    assert not any(line.startswith(("usage", "Traceback")) for line in lines)


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("config.json", "a model or a lens, which the trained model would replace"),
        ("run.json", "a run or an evaluation, which the training would hide"),
    ],
)
def test_a_folder_with_something_else_is_not_trained_into(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], name: str, told: str
) -> None:
    (tmp_path / name).write_text("{}")
    assert command(monkeypatch, "train", "--config", "tiny-qwen3-cpu", "--output_dir", str(tmp_path)) == 2
    assert f"{tmp_path} holds {told}: take a new output_dir" in capsys.readouterr().err.splitlines()[-1]
    assert [(file.name, file.read_text()) for file in tmp_path.iterdir()] == [(name, "{}")]


def test_a_choice_on_a_model_of_another_depth_is_refused_before_the_model_is_loaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("layerlens.models.load_pretrained", None)
    choice = select_layer(make_run([0.6, 0.5, -0.4, -0.6], start=6.0), resamples=100)
    (tmp_path / "choice.json").write_text(json.dumps(choice.to_dict()))
    words = ["--internal_layer", str(tmp_path / "choice.json"), "--output_dir", str(tmp_path / "out")]
    assert command(monkeypatch, "train", "--config", "tiny-qwen3-cpu", *words) == 2
    assert "was chosen on synthetic, which has 4 layers, and the model to train has 12" in capsys.readouterr().err.splitlines()[-1]


def test_generation_settings_that_could_not_be_saved_are_corrected_before_training() -> None:
    """As many models ship them: a temperature, and nothing that says to sample."""
    config = GenerationConfig(temperature=0.6, top_k=20)
    with pytest.raises(ValueError, match="do_sample"):
        config.validate(strict=True)
    _make_savable(config)
    config.validate(strict=True)
    assert (config.temperature, config.do_sample) == (0.6, True)
    config.max_new_tokens = -1
    with pytest.raises(TrainingError, match=r"generation_config.json: .*max_new_tokens"):
        _make_savable(config)


def test_adapters_as_reference_of_beta_are_refused(tmp_path: Path) -> None:
    (tmp_path / "adapters").mkdir()
    (tmp_path / "adapters" / "adapter_config.json").write_text("{}")
    words = ["--model", str(tmp_path / "adapters"), "--beta", "0.1", "--internal_norm", "final", "--output_dir", str(tmp_path / "out")]
    with pytest.raises(TrainingError, match="holds adapters, which TRL cannot load as the reference of beta: give lora_rank, or beta 0"):
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
    "--loss_type best": "loss_type is one of grpo, bnpo",
    "--scale_rewards maybe": "scale_rewards is one of group, batch, none, got 'maybe'",
    "--learning_rate -1": "learning_rate must be at least 0, got -1",
    "--steps_per_generation 0": "steps_per_generation must be at least 1, got 0",
    "--deepspeed nowhere.json": "which is not installed: pip install deepspeed, or shard with FSDP2",
    "--eval_strategy steps": "layerlens train evaluates nothing while it trains",
    "--reward_weights 1 2": "Number of reward weights (2) must match number of reward functions (1) (ValueError)",
    "--use_vllm true": "Please install vLLM with `pip install trl[vllm]` to use it. (ImportError)",
    "--max_steps 1 --adam_beta1 2": "Invalid beta parameter at index 0: 2.0 (ValueError)",
    "--max_steps 1 --repetition_penalty 0": "`penalty` has to be a strictly positive float, but is 0.0 (ValueError)",
    "--internal_rollouts 5 --internal_schedule 2:3": "give either internal_schedule, or internal_layer with internal_rollouts",
}


@pytest.fixture
def forgetting_deepspeed() -> Iterator[None]:
    """Transformers keeps a DeepSpeed configuration for the whole process, also one that it has refused."""
    yield
    unset_hf_deepspeed_config()


@pytest.mark.usefixtures("forgetting_deepspeed")
@pytest.mark.parametrize("words", MISTAKES)
def test_a_mistaken_field_is_told_in_one_line(
    words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert command(monkeypatch, "train", "--config", "tiny-qwen3-cpu", "--monitor_every", "0", *words.split()) == 2
    told = capsys.readouterr()
    assert told.out == ""
    *_, last = lines = told.err.splitlines()
    assert MISTAKES[words] in last
    assert [line for line in lines if line.startswith(("layerlens: ", "Traceback", "usage"))] == [last]


def test_help_names_every_field_once_by_its_new_name(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert command(monkeypatch, "train", "--help") == 0
    listed = re.findall(r"^ *• (\w+):", capsys.readouterr().out, re.M)
    assert listed == [field.name for cls in (ScriptArguments, BuPOFields) for field in fields(cls)]
    rules = next(field.metadata["help"] for field in fields(BuPOFields) if field.name == "internal_rule")
    assert [rule for rule in RULES if rule not in rules] == []


def test_help_beside_a_configuration_shows_its_settings(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "mine.yaml").write_text("model: tiny-llama\ninternal_layer: 7\nlearning_rate: 3.0e-5\n")
    for words in (("--config", str(tmp_path / "mine.yaml"), "--help"), ("--help", f"--config={tmp_path / 'mine.yaml'}")):
        assert command(monkeypatch, "train", *words) == 0
        told = capsys.readouterr().out
        assert re.findall(r"^ *• (\w+): (\S+) *$", told, re.M)[-3:] == [
            ("model", "tiny-llama"), ("internal_layer", "7"), ("learning_rate", "3e-05"),
        ]  # fmt: skip
    assert command(monkeypatch, "train", "-c", "nowhere", "-h") == 2
    assert "layerlens: nowhere: no such configuration file; shipped are" in capsys.readouterr().err


def test_a_run_that_ended_in_shards_is_told_how_to_join_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    shards = tmp_path / "checkpoint-4" / "pytorch_model_fsdp_0"
    shards.mkdir(parents=True)
    (shards.parent / "trainer_state.json").write_text('{"global_step": 4}')
    train = ["train", "--config", "tiny-qwen3-cpu", "--output_dir", str(tmp_path), "--max_steps", "4", "--resume", "true"]
    assert command(monkeypatch, *train) == 2
    told = capsys.readouterr().err.strip()
    assert told.endswith(f"with the model in shards: accelerate merge-weights {shards} FOLDER joins its weights, or give more --max_steps")
    shards.rmdir()
    assert command(monkeypatch, *train) == 2
    assert f"but {shards.parent} holds no whole model: give more --max_steps" in capsys.readouterr().err


@pytest.mark.parametrize("reward", ["boxed", "arithmetic"])
def test_a_reward_that_compares_texts_is_said_to_do_so_before_training(
    reward: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def begin(self: BuPOTrainer, **_: Any) -> None:
        raise TrainingError("training begins")

    monkeypatch.setattr(BuPOTrainer, "train", begin)
    train = ("train", "--config", "tiny-qwen3-cpu", "--output_dir", str(tmp_path), "--reward", reward, "--monitor_every", "0")
    assert command(monkeypatch, *train) == 2
    *before, last = capsys.readouterr().err.splitlines()
    assert last == "layerlens: training begins"
    told = [line for line in before if "letter by letter" in line]
    assert [line.split()[:2] for line in told] == ([["reward", "boxed"]] if reward == "boxed" else [])
    assert all("math compares values" in line for line in told)


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
        "--internal_rollouts", "3", "--per_device_train_batch_size", "8", "--num_generations", "4", "--max_completion_length", "16",
        "--problems_limit", "16", "--monitor_every", "2", "--monitor_problems", "2", "--monitor_repeats", "1", "--save_steps", "2",
    ]  # fmt: skip
    assert command(monkeypatch, *train, "--max_steps", "2") == 0
    assert command(monkeypatch, *train, "--max_steps", "4", "--resume", "true") == 0
    seen = [entry for entry in Recorder.entries if "reward" in entry]
    assert [(entry["step"], entry["bupo/internal_layer"]) for entry in seen] == [(1, 3), (2, 3), (3, 3), (4, 0)]
    assert [entry["step"] for entry in Recorder.entries if "monitor/kl/above" in entry] == [0, 2, 3, 4]
    capsys.readouterr()
    for words, told in (
        ((), "holds checkpoints of an earlier run: go on with --resume true"),
        (("--resume", "true"), "has taken all of its 4 steps, and holds the trained model: give more --max_steps"),
    ):
        assert command(monkeypatch, *train, "--max_steps", "4", *words) == 2
        assert told in capsys.readouterr().err.strip().splitlines()[-1]
    other = [word if word != "3" else "4" for word in train]
    assert command(monkeypatch, *other, "--max_steps", "6", "--resume", "true") == 2
    refusal = capsys.readouterr().err.strip().splitlines()[-1]
    assert refusal.startswith("layerlens: ")
    assert "had another schedule" in refusal
    assert command(monkeypatch, *train, "--max_steps", "6", "--problems_seed", "9", "--resume", "true") == 2
    assert "was trained with problems_seed 0, and 9 would be another run: restore it" in capsys.readouterr().err
    kept = json.loads((out / "settings.json").read_text())
    assert kept["settings"]["max_steps"] == 4
    assert kept["resumed"] == [{"after_optimizer_step": 2, "changed": {"max_steps": [2, 4]}}]
    card = (out / "README.md").read_text()
    assert "`tiny-qwen3`, trained with BuPO" in card
    assert "| internal policy of layer 3 | 3 rollouts (3 optimizer steps), norm none |" in card
    for name in ("rng_state.pth", "optimizer.pt"):
        file = out / "checkpoint-4" / name
        whole = file.read_bytes()
        file.write_bytes(whole[:-100])
        assert command(monkeypatch, *train, "--max_steps", "6", "--resume", "true") == 2
        refusal = capsys.readouterr().err.strip().splitlines()[-1]
        assert refusal.startswith(f"layerlens: {file.parent} cannot be read (")
        assert refusal.endswith("remove it to go on from the checkpoint before it")
        file.write_bytes(whole)

    assert command(monkeypatch, "plot", str(out), "--out", str(tmp_path / "figures"), "--json") == 0
    told = json.loads(capsys.readouterr().out)
    drawn = {Path(path).name for path in told["figures"]}
    assert drawn == {"training.png", "training-change.png"} | {
        f"bupo-{kind}.png" for kind in ("layer-entropy", "layer-entropy-change", "modules", "refinement", "drift", "difference")
    }
    assert [reason.partition(":")[0] for reason in told["skipped"]] == ["stability", "bupo-reward-entropy"]

    snapshots = [str(out / "monitor" / f"step-{step:06d}") for step in (0, 4)]
    difference = ["plot", *snapshots, "--kind", "difference", "--out", str(tmp_path / "figures")]
    assert command(monkeypatch, *difference) == 0
    assert command(monkeypatch, *difference, "--sample", "0", "--format", "svg") == 0
    assert (tmp_path / "figures" / "difference.png").exists()
    assert (tmp_path / "figures" / "difference.svg").exists()
    assert command(monkeypatch, "plot", snapshots[0], "--kind", "difference", "--out", str(tmp_path / "figures")) == 2
    assert "a difference is of two runs, before and after; got 1" in capsys.readouterr().err


def test_a_stopped_run_whose_layer_was_chosen_goes_on_without_another_analysis(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    train = [
        "train", "--config", "tiny-qwen3-cpu", "--output_dir", str(tmp_path), "--internal_layer", "auto",
        "--internal_rule", "boundary", "--internal_samples", "4", "--per_device_train_batch_size", "8",
        "--num_generations", "4", "--max_completion_length", "8", "--problems_limit", "16", "--monitor_every", "0", "--save_steps", "1",
    ]  # fmt: skip
    assert command(monkeypatch, *train, "--max_steps", "1") == 0
    before = json.loads((tmp_path / "schedule.json").read_text())
    monkeypatch.setattr("layerlens.train.layer_choice.analyze", None)
    assert command(monkeypatch, *train, "--max_steps", "2", "--resume", "true") == 0
    assert json.loads((tmp_path / "schedule.json").read_text()) == before
    assert json.loads((tmp_path / "settings.json").read_text())["resumed"][0]["changed"] == {"max_steps": [1, 2]}


def test_from_analysis_to_an_evaluated_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    run, out, answers = str(tmp_path / "run"), tmp_path / "bupo", str(tmp_path / "answers")
    analyze = ("analyze", "tiny-qwen3", "arithmetic", "--dtype", "float32", "--limit", "4", "--max-new-tokens", "48", "--out", run)
    assert command(monkeypatch, *analyze) == 0
    capsys.readouterr()
    assert command(monkeypatch, "select", run, "--rule", "entropy_drop", "--json") == 0
    (tmp_path / "choice.json").write_text(capsys.readouterr().out)
    choice = json.loads((tmp_path / "choice.json").read_text())
    train = [
        "train", "--config", "tiny-qwen3-cpu", "--internal_layer", str(tmp_path / "choice.json"),
        "--internal_rollouts", "1", "--output_dir", str(out), "--save_strategy", "no", "--max_steps", "2",
        "--per_device_train_batch_size", "8",
        "--num_generations", "4", "--max_completion_length", "24", "--monitor_every", "2", "--monitor_problems", "2",
        "--monitor_repeats", "2",
    ]  # fmt: skip
    assert command(monkeypatch, *train) == 0
    assert "internal_layer was chosen" not in capsys.readouterr().err, "the model is the one that the layer was chosen on"
    assert (out / "model.safetensors").exists()
    schedule = json.loads((out / "schedule.json").read_text())
    assert schedule["choice"] == choice
    assert (choice["run"], choice["fingerprint"]) == (run, json.loads((tmp_path / "run" / "run.json").read_text())["model"]["fingerprint"])
    assert [phase["layer"] for phase in schedule["phases"]] == [choice["layer"]]
    steps = [json.loads(line)["step"] for line in (out / "monitor" / "summary.jsonl").read_text().splitlines()]
    assert steps == [0, 1, 2]
    assert command(monkeypatch, "plot", str(out), "--out", str(tmp_path / "figures")) == 0
    assert (tmp_path / "figures" / "training.png").stat().st_size > 10_000
    evaluate = ("eval", str(out), "--tasks", "arithmetic", "--limit", "3", "--answers", "2", "--max-new-tokens", "48", "--out", answers)
    assert command(monkeypatch, *evaluate) == 0
