"""`layerlens eval` on the bundled models."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import typer
from click.testing import Result
from typer.testing import CliRunner

import layerlens as ll
import layerlens.plots
from layerlens.cli.eval import eval_command
from layerlens.cli.evaluation_table import show_evaluations
from layerlens.errors import LayerLensError
from layerlens.evaluate import TASKS, find_task, open_evaluation
from layerlens.evaluate.tasks import DATA_VARIABLE
from tests.support.evaluations import evaluated, sampled

app = typer.Typer()
app.command()(eval_command)


def evaluation(out: Path, *options: object, tasks: str = "arithmetic") -> list[str]:
    common = ["tiny-qwen3", "--tasks", tasks, "--limit", 3, "--max-new-tokens", 24, "--device", "cpu", "--out", out]
    return [str(word) for word in [*common, *options]]


def test_eval_writes_a_summary_and_compares_with_an_earlier_evaluation(tmp_path: Path) -> None:
    first = CliRunner().invoke(app, evaluation(tmp_path / "a", "--answers", 2, "--json"))
    assert first.exit_code == 0, first.output
    [task] = json.loads(first.stdout)["tasks"]
    assert (task["problems"], task["answers"], task["reward"]) == (3, 2, "arithmetic_reward")
    assert json.loads((tmp_path / "a" / "arithmetic" / "summary.json").read_text()) == task
    assert (tmp_path / "a" / "arithmetic-pass.png").stat().st_size > 5000
    options = ["--answers", 2, "--layer", 12, "--norm", "final", "--compare", tmp_path / "a", "--no-figure"]
    second = CliRunner().invoke(app, evaluation(tmp_path / "b", *options))
    assert second.exit_code == 0, second.output
    assert "tiny-qwen3 layer 12 (norm: final)" in second.stdout
    assert "Pass@2" in second.stdout
    assert "gain over it          0.0  (-63.2, 63.2)*" in second.stdout, "alike problem by problem, of which there are three"
    assert second.stdout.count("  with other answers") == 2
    assert "for other problems like these; in the lines 'with other answers' for other answers to these very problems" in second.stdout
    assert "* All are alike, so there is no spread to judge by" in second.stdout
    assert "not of the model alone" not in second.stdout
    # the last layer through the final norm is the model: same seeds, same answers
    for name in ("000000.jsonl", "000001.jsonl", "000002.jsonl"):
        assert (tmp_path / "a" / "arithmetic" / "answers" / name).read_text() == (
            tmp_path / "b" / "arithmetic" / "answers" / name
        ).read_text()


@pytest.mark.parametrize(
    ("layer", "made_of"),
    [("mix:4=3,12=1", {"layers": (4, 12), "weights": (3.0, 1.0)}), ("contrast:12,4", {"contrast": (12, 4)})],
)
def test_eval_answers_from_layers_together(layer: str, made_of: dict[str, Any], tmp_path: Path) -> None:
    words = evaluation(
        tmp_path, "--answers", 1, "--layer", layer, "--norm", "final", "--dtype", "float32", "--temperature", 0, "--no-figure"
    )
    words[words.index("--limit") + 1], words[words.index("--max-new-tokens") + 1] = "1", "6"
    done = CliRunner().invoke(app, words)
    assert done.exit_code == 0, done.output
    named = "mix:4=0.75,12=0.25" if "mix" in layer else layer
    assert f"tiny-qwen3 {named} (norm: final)" in done.stdout
    found = open_evaluation(tmp_path / "arithmetic")
    assert found.manifest.config.layer == named
    model = ll.load("tiny-qwen3", dtype="float32")
    [prompt] = ll.read_prompts(find_task("arithmetic").source, model, limit=1)
    policies = model.policy(norm="final", **made_of), model.policy(12, norm="final")
    answer, final = (policy.sample(prompt.token_ids, 1, 6, temperature=0.0)[0] for policy in policies)
    [[kept]] = [problem.answers for problem in found.problems]
    assert kept.text == model.tokenizer.decode(answer, skip_special_tokens=True)
    assert answer != final


def test_a_gain_of_other_sampling_is_said_to_be_that(capsys: pytest.CaptureFixture[str]) -> None:
    before, after = evaluated([2, 4], 8), sampled(evaluated([3, 6], 8), temperature=0.0, max_new_tokens=16)
    show_evaluations([before, after])
    told = "The gain over m is not of the model alone: the new evaluation has max_new_tokens 16, not 8, temperature 0.0, not 1.0."
    assert told in capsys.readouterr().out


def test_fewer_answers_later_leave_the_summary_of_all(tmp_path: Path) -> None:
    folder = tmp_path / "a" / "arithmetic"
    assert CliRunner().invoke(app, evaluation(tmp_path / "a", "--answers", 4, "--no-figure")).exit_code == 0
    summary = (folder / "summary.json").read_text()
    few = CliRunner().invoke(app, evaluation(tmp_path / "a", "--answers", 2, "--no-figure", "--json"))
    assert few.exit_code == 0, few.output
    assert json.loads(few.stdout)["tasks"][0]["answers"] == 2
    assert (folder / "summary.json").read_text() == summary
    assert json.loads(summary)["answers"] == open_evaluation(folder).n_answers == 4


def test_a_gain_of_other_prompts_is_said_to_be_that(tmp_path: Path) -> None:
    def invoke(out: str, *options: object) -> Result:
        return CliRunner().invoke(app, evaluation(tmp_path / out, "--answers", 1, "--no-figure", *options))

    assert invoke("a").exit_code == 0
    told = "The gain over tiny-qwen3 is not of the model alone: the new evaluation has other prompts."
    assert told in invoke("b", "--system", "Answer badly.", "--compare", tmp_path / "a").stdout
    assert "not of the model alone" not in invoke("c", "--compare", tmp_path / "a").stdout
    [task] = json.loads(invoke("c", "--compare", tmp_path / "b", "--json").stdout)["tasks"]
    assert [gain["sampled_otherwise"] for gain in task["gain_over"]] == ["other prompts"]


def test_eval_votes_with_the_answers_that_think_deepest(tmp_path: Path) -> None:
    options = ["--answers", 2, "--select", "deep-thinking", "--no-figure"]
    done = CliRunner().invoke(app, evaluation(tmp_path / "a", *options))
    assert done.exit_code == 0, done.output
    assert "of all 2 answers" in done.stdout
    assert "of the 1 that think deepest in their first 50 tokens" in done.stdout
    vote = json.loads((tmp_path / "a" / "arithmetic" / "summary.json").read_text())["deep_thinking_vote"]
    assert (vote["answers"], vote["kept"]) == (2, 1)
    assert (tmp_path / "a" / "arithmetic-deep-thinking-2" / "run.json").is_file()
    more = CliRunner().invoke(app, evaluation(tmp_path / "a", "--answers", 3, *options[2:]))
    assert more.exit_code == 0, more.output
    vote = json.loads((tmp_path / "a" / "arithmetic" / "summary.json").read_text())["deep_thinking_vote"]
    assert (vote["answers"], vote["kept"]) == (3, 2)
    alone = CliRunner().invoke(app, evaluation(tmp_path / "c", "--answers", 1, *options[2:]))
    assert "votes among two or more answers" in str(alone.exception)
    assert not (tmp_path / "c").exists()
    refused = CliRunner().invoke(app, evaluation(tmp_path / "b", *options, "--layer", 3))
    assert "leave out --layer" in str(refused.exception)


def test_eval_samples_16_answers_unless_the_task_has_another_number(tmp_path: Path) -> None:
    file, _ = TASKS["aime24"]
    record = {"prompt": [[{"role": "user", "content": "What is 1 + 1?"}]], "reward_model": [{"ground_truth": "2"}]}
    pd.DataFrame(record).to_parquet(tmp_path / file)
    words = evaluation(tmp_path / "a", "--data", tmp_path, "--reward", "boxed", "--no-figure", "--json", tasks="arithmetic,aime24")
    words[words.index("--limit") + 1] = words[words.index("--max-new-tokens") + 1] = "1"
    done = CliRunner().invoke(app, words)
    assert done.exit_code == 0, done.output
    found = json.loads(done.stdout)["tasks"]
    assert [("avg@16" in found[0], found[0]["answers"]), ("avg@32" in found[1], found[1]["answers"])] == [(True, 16), (True, 32)]


def test_eval_compares_several_models_in_one_figure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    runner, drawn = CliRunner(), []
    save = layerlens.plots.save
    monkeypatch.setattr(layerlens.plots, "save", lambda ax, path: (drawn.append(ax), save(ax, path))[1])
    for name in ("a", "b"):
        done = runner.invoke(app, evaluation(tmp_path / name, "--answers", 4, "--seed", ord(name), "--no-figure"))
        assert done.exit_code == 0, done.output
    words = evaluation(tmp_path / "c", "--answers", 2, "--compare", tmp_path / "a", "--compare", tmp_path / "b")
    done = runner.invoke(app, ["tiny-llama", *words[1:]])
    assert done.exit_code == 0, done.output
    header = done.stdout.splitlines()[0].split()
    assert header[-3:] == ["tiny-qwen3", "tiny-qwen3", "tiny-llama"]
    lines = [line for line in drawn[0].lines if not line.get_label().startswith("_")]
    assert [line.get_label() for line in lines] == ["tiny-qwen3 #1", "tiny-qwen3 #2", "tiny-llama"]
    assert [line.get_xdata().tolist()[-1] for line in lines] == [4, 4, 2], "each as far as it has answers"
    for line, name in zip(lines, "abc", strict=True):
        kept = json.loads((tmp_path / name / "arithmetic" / "summary.json").read_text())["pass"]
        np.testing.assert_allclose(line.get_ydata(), [row["mean"] for row in kept.values()])
    assert (tmp_path / "c" / "arithmetic-pass.png").stat().st_size > 5000


def test_eval_tells_of_checks_that_failed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "my_broken_checker.py").write_text("def check(completions, ground_truth):\n    raise KeyError('oh')\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    words = evaluation(tmp_path / "a", "--answers", 2, "--no-figure", "--reward", "my_broken_checker:check")
    told = r"my_broken_checker:check checked none of the answers of tiny-qwen3 to arithmetic \(KeyError: 'oh'\): mend it"
    with pytest.raises(LayerLensError, match=told):
        CliRunner().invoke(app, words, catch_exceptions=False)
    folder = tmp_path / "a" / "arithmetic"
    assert json.loads((folder / "summary.json").read_text())["unchecked"] == 6
    row = json.loads((folder / "answers" / "000000.jsonl").read_text().splitlines()[0])
    assert (row["score"], row["unchecked"]) == (0.0, "KeyError: 'oh'")
    (tmp_path / "my_broken_checker.py").write_text(
        "def check(completions, ground_truth):\n    return [1.0 if ground_truth[0] == '29' else None]\n"
    )
    monkeypatch.setattr("layerlens.evaluate.engines.generate_responses", None)
    some = CliRunner().invoke(app, words)
    assert some.exit_code == 0, some.output
    assert json.loads((folder / "summary.json").read_text())["unchecked"] == 4
    assert "4 of 6 answers to arithmetic (the reward gave no number)" in some.stderr
    assert "not checked           66.7" in some.stdout


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (["--tasks", "math500"], "math500 needs the file"),
        (["--tasks", "arithmetic,arithmetic"], "each once"),
        (["--reward", "guess"], "unknown reward 'guess'"),
        (["--engine", "vllm", "--device", "cuda"], "vllm is not installed"),
        (["--engine", "vllm"], "vLLM takes GPUs by itself"),
        (["--layer", "13"], r"1\.\.12"),
        (["--layer", "mix:4,13"], r"1\.\.12"),
        (["--layer", "contrast:12"], "a contrast is of two layers, the mature one first"),
        (["--compare", "nowhere"], "holds no evaluation"),
    ],
)
def test_eval_refuses_mistakes_before_anything_runs(tmp_path: Path, options: list[str], told: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(DATA_VARIABLE, raising=False)
    monkeypatch.setitem(sys.modules, "vllm", None)
    with pytest.raises(LayerLensError, match=told):
        CliRunner().invoke(app, evaluation(tmp_path / "out", *options), catch_exceptions=False)
    assert not os.listdir(tmp_path)


def test_eval_still_takes_samples_as_the_old_name_of_answers(tmp_path: Path) -> None:
    shown = CliRunner().invoke(app, ["--help"])
    assert "--answers" in shown.stdout
    assert "--samples" not in shown.stdout
    words = evaluation(tmp_path / "out", "--samples", 3, "--no-figure", "--json")
    words[words.index("--limit") + 1] = words[words.index("--max-new-tokens") + 1] = "1"
    done = CliRunner().invoke(app, words)
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout)["tasks"][0]["answers"] == 3
    with pytest.raises(LayerLensError, match="--samples is the old name of --answers: give one of them"):
        CliRunner().invoke(app, [*words, "--answers", "3"], catch_exceptions=False)
