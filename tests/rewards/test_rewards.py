"""Correct answers score 1, wrong answers 0; columns, names and errors of rewards."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pyarrow.parquet
import pytest

import layerlens.rewards
from layerlens.rewards.rewards import Reward, RewardError, arithmetic_reward, boxed_reward, load_reward, math_fast_path, math_reward
from tests.support.data import public_data
from tests.support.markdown import ROOT, tables


@pytest.fixture(scope="module")
def patient() -> Iterator[Reward]:
    """The mathematics reward with all the time that a busy machine may need."""
    reward = Reward(math_reward.target, fast_path=math_fast_path, timeout=300.0, columns=False)
    yield reward
    reward.close()


def test_math_reward_compares_as_mathematics(patient: Reward) -> None:
    right = [
        (r"so \boxed{\frac{1}{2}}", "0.5"),
        (r"\boxed{\dfrac12}", r"\frac{1}{2}"),
        (r"first \boxed{3}, no: \boxed{x^2 + 2x + 1}", "(x+1)^2"),
        (r"\boxed{(3, \pi/2)}", r"\left( 3, \frac{\pi}{2} \right)"),
        (r"\boxed{\text{east}}", r"\text{east}"),
        ("The final answer is $\\sqrt{8}$.", r"2\sqrt{2}"),
        ("after all of it we have 42", "42"),
        (r"\boxed{1,000}", "1000"),
        (r"\boxed{70}", r"\boxed{70}"),
        (r"\boxed{70}", "$70$"),
    ]
    wrong = [(r"\boxed{2}", "3"), (r"\boxed{3}, no: \boxed{4}", "3"), (r"\boxed{x}", "y"), ("", "3"), (r"\boxed{", "3"), (r"\boxed{}", "3")]
    for pairs, score in ((right, 1.0), (wrong, 0.0)):
        found = patient([answer for answer, _ in pairs], ground_truth=[truth for _, truth in pairs])
        assert dict(zip(pairs, found, strict=True)) == dict.fromkeys(pairs, score)
    assert (patient.counts.hung, patient.counts.raised) == (0, 0)


def test_rewards_take_chat_messages(patient: Reward) -> None:
    chat = [{"role": "assistant", "content": "hm"}, {"role": "assistant", "content": r"\boxed{1/2}"}]
    parts = [{"role": "assistant", "content": [{"type": "text", "text": r"\boxed{0.5}"}]}]
    columns = {"ground_truth": ["0.5", "0.5"], "prompts": ["?", "?"], "trainer_state": object()}
    assert patient(completions=[chat, parts], **columns) == [1.0, 1.0]
    assert boxed_reward([chat, parts], **columns) == [0.0, 1.0]
    assert arithmetic_reward([[{"role": "assistant", "content": r"\boxed{+07}"}]], [7]) == [1.0]


def test_boxed_reward_compares_texts_and_arithmetic_reward_integers() -> None:
    answers = [r"\boxed{7}", r"\boxed{8} \boxed{ 7 }", r"\boxed{7.0}", "7", r"\boxed{7} \boxed{"]
    assert boxed_reward(answers, ["7"] * 5) == [1, 1, 0, 0, 0]
    assert arithmetic_reward([r"\boxed{1,234}", r"\boxed{12}"], ["1234", "21"]) == [1, 0]


def test_reward_works_in_threads(patient: Reward) -> None:
    """math-verify's own time limit needs signals, which only the main thread gets; ours does not."""
    with ThreadPoolExecutor(4) as threads:
        jobs = [threads.submit(patient, [rf"\boxed{{\frac{{{n}}}{{4}}}}"] * 3, [str(n / 4)] * 3) for n in range(1, 9)]
        assert [job.result() for job in jobs] == [[1.0] * 3] * 8
    assert patient.counts.raised == 0


def test_reward_passes_on_columns_of_plain_values(checkers: Any) -> None:
    reward = checkers("columns", timeout=60.0)
    given = {"difficulty": [1, 2], "prompts": ["a", "b"], "trainer_state": object(), "environments": [object(), object()]}
    assert reward(["x", "y"], **given) == [2.0, 3.0]


def test_load_reward_takes_a_name_or_any_function(checkers: Any) -> None:
    assert load_reward("math") is math_reward
    assert load_reward("boxed") is boxed_reward
    reward = load_reward("my_checkers:good", timeout=60.0)
    assert isinstance(reward, Reward)
    assert reward(["a", "b"], ["a", "c"]) == [1, 0]
    assert reward.__name__ == "good"
    copy = pickle.loads(pickle.dumps(reward))
    assert copy(["a"], ["a"]) == [1]
    copy.close()
    reward.close()
    assert reward(["a"], ["a"]) == [1]  # starts again
    reward.close()
    for wrong, told in (("guess", "choose from math, boxed"), ("nowhere:f", "No module"), ("my_checkers:f", "no attribute")):
        with pytest.raises(RewardError, match=told):
            load_reward(wrong)


def test_rewards_raise_on_errors_that_are_no_answers_fault(checkers: Any) -> None:
    for reward in (math_reward, boxed_reward, arithmetic_reward):
        with pytest.raises(RewardError, match="column 'ground_truth'"):
            reward(["x"])
        with pytest.raises(RewardError, match="expected 1 ground truths"):
            reward(["x"], ["1", "2"])
        with pytest.raises(RewardError, match="got int"):
            reward([3], ["1"])
    with pytest.raises(RewardError, match=r"cannot be used \(AttributeError"):
        checkers("gone")(["x"], ["x"])


def ground_truths(name: str) -> list[str]:
    file = public_data(name)
    return [row["ground_truth"] for row in pyarrow.parquet.read_table(file, columns=["reward_model"]).column(0).to_pylist()]


@pytest.mark.parametrize(
    ("name", "count", "same", "equal"),
    [
        ("aime_2024.parquet", 30, 0, []),
        ("aime_2025.parquet", 30, 0, []),
        ("amc2023.parquet", 40, 3, []),
        ("math500.parquet", 500, 2, [("5", "x=5")]),
        pytest.param(
            "deepmath-5k.parquet",
            5000,
            157,
            # math-verify reads an equation as its right side, a set of one as its element, and letters without case
            [("1", "u^2 + v^2 = 1"), ("A", "a"), (r"\Delta = 0", "0"), ("0", r"\{0\}"), ("0", r"\lambda = 0")],
            marks=pytest.mark.slow,
        ),
    ],
)
def test_math_reward_gives_ground_truths_1_and_the_next_problems_0(
    name: str, count: int, same: int, equal: list[tuple[str, str]], patient: Reward
) -> None:
    truths = ground_truths(name)
    shifted = truths[1:] + truths[:1]
    assert len(truths) == count
    alone = Reward(math_reward.target, timeout=300.0)  # math-verify without the fast path for equal texts
    assert sum(patient([rf"so \boxed{{{truth}}}" for truth in truths], truths)) == count
    assert sum(alone([rf"so \boxed{{{truth}}}" for truth in truths], truths)) == count
    alone.close()
    scores = patient([rf"so \boxed{{{other}}}" for other in shifted], truths)
    found = [(truth, other) for truth, other, score in zip(truths, shifted, scores, strict=True) if score]
    assert [pair for pair in found if pair[0] != pair[1]] == equal
    assert len(found) - len(equal) == sum(truth == other for truth, other in zip(truths, shifted, strict=True)) == same
    assert (patient.counts.hung, patient.counts.raised) == (0, 0)


def test_importing_the_rewards_loads_no_heavy_library() -> None:
    heavy = ("torch", "trl", "math_verify", "sympy")
    for module in ("layerlens.rewards", "layerlens.train.rewards"):
        code = f"import sys, {module}; print([m for m in {heavy} if m in sys.modules])"
        assert subprocess.check_output([sys.executable, "-c", code], text=True, env={**os.environ}).strip() == "[]"


def test_train_rewards_has_the_names_that_training_scripts_import() -> None:
    from layerlens.train import rewards as alias

    for name in ("REWARDS", "Reward", "RewardError", "arithmetic_reward", "boxed_reward", "load_reward", "math_reward"):
        assert getattr(alias, name) is getattr(layerlens.rewards, name)
        assert name in alias.__all__
    assert layerlens.rewards.REWARDS.keys() == {"math", "boxed", "arithmetic"}


def test_the_docs_compare_boxed_and_math_as_they_score(patient: Reward) -> None:
    compared = [row for table in tables((ROOT / "docs" / "training.md").read_text()) for row in table if "answer in the box" in row]
    assert len(compared) > 8
    for row in compared:
        truth, answer = (row[name].strip("`") for name in ("ground truth", "answer in the box"))
        text = [rf"so \boxed{{{answer}}}"]
        assert [boxed_reward(text, [truth]), patient(text, [truth])] == [[float(row["boxed"])], [float(row["math"])]], row
