"""Answers that stay the same however often a run was killed or extended, and results that say what they are."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path

import numpy as np
import pytest
from filelock import FileLock

import layerlens as ll
from layerlens.errors import LayerLensError, PromptError, RunError, SelectionError
from layerlens.evaluate import Evaluation, evaluate, open_evaluation
from tests.support.evaluations import evaluated, even_words, some_problems

SHORT = ll.Generation(max_new_tokens=6, seed=3)


def run(model: ll.LensModel, out: Path | None, k: int = 6, **more: object) -> Evaluation:
    options = {"reward": even_words, "generation": SHORT, "batch_size": 4} | more
    return evaluate(model, some_problems(), k, out=out, **options)  # type: ignore[arg-type]


def files(out: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in (out / "answers").glob("*.jsonl")}


def killed_at_write(model: ll.LensModel, out: Path, number: int, k: int) -> bool:
    """Runs in a child that gets SIGKILL just before, or just after, its number-th file is put in place; whether it got so far."""
    child = os.fork()
    if child == 0:
        replace, calls = os.replace, 0

        def deadly(source: Path, target: Path) -> None:
            nonlocal calls
            calls += 1
            if calls > number // 2:
                if number % 2:
                    replace(source, target)
                os.kill(os.getpid(), signal.SIGKILL)
            replace(source, target)

        try:
            os.replace = deadly  # type: ignore[assignment]
            run(model, out, k)
            os._exit(0)
        finally:
            os._exit(1)
    status = os.waitpid(child, 0)[1]
    assert os.waitstatus_to_exitcode(status) in (0, -signal.SIGKILL)
    return status != 0


def test_a_run_killed_at_every_write_ends_as_if_never_killed(qwen: ll.LensModel, tmp_path: Path) -> None:
    whole = run(qwen, tmp_path / "whole")
    assert (whole.n_answers, len(whole.problems)) == (6, 5)
    kills = 0
    while killed_at_write(qwen, tmp_path / "often", kills % 6, 6):
        kills += 1
    assert kills > 15
    assert files(tmp_path / "often") == files(tmp_path / "whole")
    assert open_evaluation(tmp_path / "often").problems == whole.problems


def test_more_answers_later_keep_the_earlier_ones(qwen: ll.LensModel, tmp_path: Path) -> None:
    few = run(qwen, tmp_path / "run", 3)
    before = files(tmp_path / "run")
    more = run(qwen, tmp_path / "run", 7)
    assert all(after.startswith(before[name]) for name, after in files(tmp_path / "run").items())
    assert [problem.answers[:3] for problem in more.problems] == [problem.answers for problem in few.problems]
    assert [problem.answers for problem in run(qwen, None, 7).problems] == [problem.answers for problem in more.problems]
    assert run(qwen, tmp_path / "run", 3).problems == few.problems
    assert open_evaluation(tmp_path / "run").n_answers == 7
    assert open_evaluation(tmp_path / "run", 3).problems == few.problems


def test_an_extension_killed_in_the_middle_is_finished(qwen: ll.LensModel, tmp_path: Path) -> None:
    for out, numbers in ((tmp_path / "whole", []), (tmp_path / "run", [5, 6])):
        run(qwen, out, 3)
        for number in numbers:
            assert killed_at_write(qwen, out, number, 7)
        run(qwen, out, 7)
    assert files(tmp_path / "run") == files(tmp_path / "whole")


def test_nothing_is_sampled_twice(qwen: ll.LensModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    done = run(qwen, tmp_path / "run")
    monkeypatch.setattr("layerlens.evaluate.engines.generate_responses", None)
    assert run(qwen, tmp_path / "run").problems == done.problems


def test_a_folder_that_says_samples_is_continued_in_the_words_of_now(qwen: ll.LensModel, tmp_path: Path) -> None:
    """Earlier versions wrote `sample` for an answer's number and `samples` for the problems of the manifest."""
    whole = run(qwen, tmp_path / "whole", 5)
    run(qwen, tmp_path / "run", 2)
    for file in [tmp_path / "run" / "eval.json", *(tmp_path / "run" / "answers").iterdir()]:
        new = file.read_text()
        file.write_text(new.replace('"problems": {', '"samples": {').replace('{"answer": ', '{"sample": '))
        assert file.read_text() != new
    assert [problem.answers for problem in open_evaluation(tmp_path / "run").problems] == [
        problem.answers[:2] for problem in whole.problems
    ]
    more = run(qwen, tmp_path / "run", 5)
    assert more.problems == open_evaluation(tmp_path / "run").problems == whole.problems
    assert files(tmp_path / "run") == files(tmp_path / "whole")


def test_answers_without_a_number_are_kept_and_checked_again(qwen: ll.LensModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def stumbling(completions: list[str], ground_truth: list[str]) -> list[float | None]:
        numbers = even_words(completions, ground_truth)
        return [{"1": None, "3": float("nan")}.get(truth, number) for number, truth in zip(numbers, ground_truth, strict=True)]

    whole = run(qwen, tmp_path / "whole", 4)
    stumbling.__name__ = even_words.__name__
    found = run(qwen, tmp_path / "run", 4, reward=stumbling)
    assert found.unchecked == ["the reward gave no number"] * 8
    assert not found.correct[[1, 3]].any()
    assert [problem.answers for problem in found.problems[::2]] == [problem.answers for problem in whole.problems[::2]]
    assert open_evaluation(tmp_path / "run").problems == found.problems
    assert open_evaluation(tmp_path / "run").summary()["unchecked"] == found.pass_at()["unchecked"].iloc[0] == 8
    found.require_checked()
    monkeypatch.setattr("layerlens.evaluate.engines.generate_responses", None)
    assert run(qwen, tmp_path / "run", 4).problems == whole.problems, "the mended reward scores what was sampled"
    assert files(tmp_path / "run") == files(tmp_path / "whole")
    assert run(qwen, tmp_path / "run", 4, reward=stumbling).problems == whole.problems, "what was checked stays"


@pytest.mark.parametrize("batch_size", [1, 3, 64])
def test_the_batch_changes_no_answer(qwen: ll.LensModel, batch_size: int) -> None:
    assert run(qwen, None, 3, batch_size=batch_size).problems == run(qwen, None, 3).problems


def test_every_answer_has_its_own_seed(qwen: ll.LensModel) -> None:
    twins = [ll.Sample(some_problems()[0].token_ids, 3, ground_truth="1")] * 2
    found = evaluate(qwen, twins, 8, reward=even_words, generation=SHORT)
    texts = [answer.text for problem in found.problems for answer in problem.answers]
    assert len(set(texts)) == 16


def test_work_that_another_process_does_is_left_to_it(qwen: ll.LensModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = run(qwen, tmp_path / "whole", 4)
    (tmp_path / "run" / ".locks").mkdir(parents=True)
    other = FileLock(tmp_path / "run" / ".locks" / "group-0-4-000001")
    other.acquire()
    theirs = tmp_path / "run" / "answers" / "000001.jsonl"

    def meanwhile(seconds: float) -> None:
        """The other process finishes its group while this one waits."""
        assert not theirs.exists()
        theirs.write_bytes((tmp_path / "whole" / "answers" / theirs.name).read_bytes())
        other.release()

    monkeypatch.setattr("layerlens.storage.shared_work.time.sleep", meanwhile)
    assert run(qwen, tmp_path / "run", 4).problems == whole.problems
    assert files(tmp_path / "run") == files(tmp_path / "whole")


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"generation": ll.Generation(6, temperature=0.5, seed=3)}, r"config.generate.temperature is 1.0 there and 0.5 now"),
        ({"layer": 2}, r"config.layer is None there and 2 now"),
        ({"reward": lambda completions, ground_truth: [0.0] * len(completions)}, r"config.reward is 'even_words' there"),
    ],
)
def test_another_configuration_is_refused(qwen: ll.LensModel, tmp_path: Path, change: dict[str, object], told: str) -> None:
    run(qwen, tmp_path / "run", 1)
    with pytest.raises(RunError, match=told):
        run(qwen, tmp_path / "run", 1, **change)


def test_other_problems_are_refused(qwen: ll.LensModel, tmp_path: Path) -> None:
    run(qwen, tmp_path / "run", 1)
    with pytest.raises(RunError, match=r"problems.count is 5 there and 2 now"):
        evaluate(qwen, some_problems(2), 1, reward=even_words, generation=SHORT, out=tmp_path / "run")


def test_a_folder_with_something_else_is_refused(qwen: ll.LensModel, tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").touch()
    with pytest.raises(RunError, match="holds no evaluation"):
        run(qwen, tmp_path, 1)
    with pytest.raises(RunError, match="holds no evaluation"):
        open_evaluation(tmp_path)


def test_damage_and_gaps_are_told(qwen: ll.LensModel, tmp_path: Path) -> None:
    whole = run(qwen, tmp_path / "run", 2)
    file = tmp_path / "run" / "answers" / "000002.jsonl"
    file.write_text(file.read_text()[:-20])
    with pytest.raises(RunError, match=r"000002.jsonl cannot be read .* remove it"):
        open_evaluation(tmp_path / "run")
    file.unlink()
    with pytest.raises(RunError, match="problem p2 has 0 of 2 answers"):
        open_evaluation(tmp_path / "run")
    assert run(qwen, tmp_path / "run", 2).problems == whole.problems
    for name in ("rounds.json", "answers/000002.jsonl"):
        kept = (tmp_path / "run" / name).read_text()
        (tmp_path / "run" / name).write_text("5\n")
        with pytest.raises(RunError, match=rf"{name} (is damaged: expected a list|cannot be read \(a line is no JSON object).*remove it"):
            open_evaluation(tmp_path / "run")
        (tmp_path / "run" / name).write_text(kept)
    for key, odd in (("answer", "0"), ("answer", None), ("tokens", "5"), ("score", [1]), ("text", None)):
        row = json.loads(kept.splitlines()[0])
        (tmp_path / "run" / name).write_text(json.dumps({**row, key: odd}) + "\n")
        with pytest.raises(RunError, match=rf"{name} is damaged \(.*expected .*remove it"):
            run(qwen, tmp_path / "run", 2)
    (tmp_path / "run" / name).write_text(kept)
    rows = [json.loads(line) for line in (tmp_path / "run" / "problems.jsonl").read_text().splitlines()]
    for odd in ({**rows[1], "id": 3}, {name: value for name, value in rows[1].items() if name != "ground_truth"}):
        (tmp_path / "run" / "problems.jsonl").write_text("".join(json.dumps(row) + "\n" for row in (rows[0], odd, *rows[2:])))
        with pytest.raises(RunError, match=r"problems\.jsonl is damaged: expected id and ground_truth in every line; remove it"):
            open_evaluation(tmp_path / "run")
    (tmp_path / "run" / "problems.jsonl").unlink()
    with pytest.raises(RunError, match=r"problems\.jsonl cannot be read"):
        open_evaluation(tmp_path / "run")
    assert run(qwen, tmp_path / "run", 2).problems == whole.problems, "the advice of the error helps"
    assert open_evaluation(tmp_path / "run").problems == whole.problems


def test_asking_for_fewer_answers_of_an_unfinished_evaluation_keeps_its_rounds(qwen: ll.LensModel, tmp_path: Path) -> None:
    whole = run(qwen, tmp_path / "run", 7)
    for file in (tmp_path / "run" / "answers").iterdir():
        file.unlink()
    few = run(qwen, tmp_path / "run", 2)
    assert [problem.answers for problem in few.problems] == [problem.answers[:2] for problem in whole.problems]
    assert json.loads((tmp_path / "run" / "rounds.json").read_text()) == [7]
    assert run(qwen, tmp_path / "run", 7).problems == whole.problems


def test_what_is_kept(qwen: ll.LensModel, tmp_path: Path) -> None:
    found = run(qwen, tmp_path / "run", 4, name="toy")
    rows = [json.loads(line) for line in (tmp_path / "run" / "answers" / "000001.jsonl").read_text().splitlines()]
    assert [row["answer"] for row in rows] == [0, 1, 2, 3]
    assert {**rows[2], "unchecked": None} == {"answer": 2} | vars(found.problems[1].answers[2])
    assert all(row["tokens"] == 6 or row["finished"] for row in rows)
    [first, *_] = (tmp_path / "run" / "problems.jsonl").read_text().splitlines()
    assert json.loads(first)["ground_truth"] == "0"
    assert json.loads((tmp_path / "run" / "eval.json").read_text())["task"] == "toy"


def test_tables_and_numbers_agree(qwen: ll.LensModel) -> None:
    found = run(qwen, None, 8, name="toy")
    frame = found.to_frame()
    assert len(frame) == 5 * 8
    assert found.correct.tolist() == frame["correct"].to_numpy().reshape(5, 8).tolist()
    mean, low, high = found.avg()
    assert mean == pytest.approx(frame["correct"].mean())
    assert low <= mean <= high
    assert found.per_problem()["right"].tolist() == found.correct.sum(1).tolist()
    summary = found.summary()
    _, answers_low, answers_high = found.avg_over_answers()
    ends = {"answers_low": answers_low, "answers_high": answers_high}
    assert summary["avg@8"] == summary["pass"]["1"] == {"mean": mean, "low": low, "high": high} | ends
    assert low <= answers_low <= mean <= answers_high <= high, "problems differ more than answers"
    assert summary["pass"]["8"]["answers_low"] is None
    assert list(summary["pass"]) == ["1", "2", "4", "8"]
    assert json.loads(json.dumps(summary, allow_nan=False)) == summary
    passes = found.pass_at()
    assert (passes["model"] == "tiny-random").all()
    assert passes[["problems", "answers"]].iloc[0].tolist() == [5, 8]
    assert found.pass_at([3])["k"].tolist() == [3]


def test_a_gain_is_paired_by_problem() -> None:
    before, after = evaluated([0, 2, 4, 6] * 4, answers=8), evaluated([1, 3, 5, 7] * 4, answers=8)
    assert before.avg()[2] > after.avg()[1], "the intervals of the two overlap"
    share = 0.05 ** (1 / 16)
    ends = 0.125 * share - (1 - share), 0.125 * share + (1 - share)
    assert after.gain_over(before) == pytest.approx((0.125, *ends)), "each problem gained the same: bounds on the others"
    assert before.gain_over(after) == pytest.approx((-0.125, -ends[1], -ends[0]))
    mean, low, high = after.gain_over(evaluated([7, 1, 3, 5] * 4, answers=8))
    assert low < mean < high
    assert mean == pytest.approx(0.0)
    mean, low, high = after.gain_over_answers(before)
    shares = np.array([0, 2, 4, 6, 1, 3, 5, 7] * 4) / 8
    reach = 1.959964 * np.sqrt((shares * (1 - shares) / 7).sum()) / 16
    assert (mean, low, high) == pytest.approx((0.125, 0.125 - reach, 0.125 + reach), rel=1e-6)
    assert evaluated([2, 6, 10, 14] * 4, answers=16).gain_over(after)[0] == pytest.approx(0.0), "the numbers of answers may differ"
    with pytest.raises(SelectionError, match="answered different problems of toy"):
        after.gain_over(evaluated([0, 1, 2, 3] * 4, answers=8, first=1))


def test_answers_can_be_scored_again(qwen: ll.LensModel, tmp_path: Path) -> None:
    found = run(qwen, tmp_path / "run", 2)
    again = found.rescored(lambda completions, ground_truth: [1.0] * len(completions))
    assert again.correct.all()
    assert [a.text for p in again.problems for a in p.answers] == [a.text for p in found.problems for a in p.answers]
    assert open_evaluation(tmp_path / "run").problems == found.problems


def test_a_response_that_comes_with_the_problem_is_not_shown(qwen: ll.LensModel) -> None:
    answered = [ll.Sample([*sample.token_ids, 9, 9], len(sample.token_ids), sample.id, sample.ground_truth) for sample in some_problems()]
    found = evaluate(qwen, answered, 2, reward=even_words, generation=SHORT)
    assert found.problems == run(qwen, None, 2).problems


@pytest.mark.parametrize(
    ("problems", "told"),
    [
        ([], "no problems"),
        ([ll.Sample([9, 9], 2)], "prompt 0 has no ground truth"),
        ([ll.Sample([9, 9], 0, ground_truth="1")], "prompt 0 is all response"),
        ([ll.Sample([9] * 125, 125, ground_truth="1")], "exceed the context"),
    ],
)
def test_problems_that_can_not_be_evaluated(qwen: ll.LensModel, tmp_path: Path, problems: list[ll.Sample], told: str) -> None:
    with pytest.raises(PromptError, match=told):
        evaluate(qwen, problems, 1, reward=even_words, generation=SHORT, out=tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_other_mistakes(qwen: ll.LensModel) -> None:
    with pytest.raises(SelectionError, match="answers per problem"):
        run(qwen, None, 0)
    with pytest.raises(SelectionError, match="batch_size"):
        run(qwen, None, 1, batch_size=0)
    with pytest.raises(SelectionError, match=r"1\.\.4"):
        run(qwen, None, 1, layer=5)
    with pytest.raises(LayerLensError, match="a score for each of 4 answers"):
        run(qwen, None, 4, reward=lambda completions, ground_truth: np.ones(len(completions) - 1))
    with pytest.raises(SelectionError, match=r"checked none of the answers of tiny-random to problems \(the reward gave no number\)"):
        run(qwen, None, 4, reward=lambda completions, ground_truth: [None] * len(completions)).require_checked()
    with pytest.raises(PromptError, match="tokenizer"):
        run(ll.LensModel.wrap(qwen.parts.model), None, 1)
