"""The comparison of `benchmarks.trl_suite`, and that its stand-ins say what TRL's tests expect under the ids that they name."""

from __future__ import annotations

from xml.etree import ElementTree

import pytest
from benchmarks.trl_stand_ins import FIRST_SPECIAL, PROMPTS, TRAINED, load_stand_in, stand_in_tokenizer
from benchmarks.trl_suite import Outcome, compared, outcome


def ended(status: str, message: str = "", weights: tuple[str, ...] = (), losses: tuple[float, ...] = ()) -> Outcome:
    return Outcome(status, message, weights, losses)


def test_where_two_runs_disagree_is_told_and_what_both_skip_is_left_out() -> None:
    grpo = {
        "same": ended("passed", "", ("a", "b")), "rounded": ended("passed", "", ("a",), (0.5,)), "worse": ended("passed"),
        "broken": ended("failed", "ValueError: x"), "vllm": ended("skipped", "requires vllm"), "gone": ended("passed"),
    }  # fmt: skip
    bupo = {**grpo, "rounded": ended("passed", "", ("c",), (0.25,)), "worse": ended("failed", "AttributeError: args")}
    del bupo["gone"]
    found = compared(grpo, bupo)
    assert found["tests"] == 4
    assert found["passed"] == {"GRPOTrainer": 4, "BuPOTrainer": 2}
    assert found["differing"] == {"worse": {"GRPOTrainer": "passed", "BuPOTrainer": "failed AttributeError: args"}}
    assert found["only_collected_with_one"] == ["gone"]
    assert found["failed_with_both"] == {"broken": "ValueError: x"}
    assert (found["tests_that_train"], found["same_weights_bit_for_bit"]) == (2, 1)
    assert found["other_weights"] == {"rounded": {"losses": {"GRPOTrainer": (0.5,), "BuPOTrainer": (0.25,)}}}
    assert (found["left_out"], found["left_out_tests"]) == ({"requires vllm": 1}, ["vllm"])


def test_an_outcome_is_read_from_pytest_s_report() -> None:
    case = ElementTree.fromstring(
        '<testcase classname="tests.test_x.TestX" name="test_y[1]"><properties><property name="weights" value="ab"/>'
        '<property name="train_loss" value="0.5"/></properties><failure message="ValueError: a&#10;more"/></testcase>'
    )
    assert outcome(case) == ("TestX::test_y[1]", ended("failed", "ValueError: a", ("ab",), (0.5,)))


@pytest.mark.parametrize("vocabulary", FIRST_SPECIAL)
def test_the_tokenizer_gives_back_every_text(vocabulary: str) -> None:
    tokenizer = stand_in_tokenizer("qwen3", FIRST_SPECIAL[vocabulary])
    text = tokenizer.apply_chat_template([{"role": "user", "content": "Größe <tool_call>\n{}"}], tokenize=False, add_generation_prompt=True)
    assert tokenizer.decode(tokenizer(text)["input_ids"]) == text
    assert tokenizer.convert_tokens_to_ids("<|im_end|>") == FIRST_SPECIAL[vocabulary] + 2 == tokenizer.eos_token_id


def test_the_whole_vocabulary_has_the_ids_of_qwen() -> None:
    ids = [151657, 198, 4913, 606, 788, 330, 64648, 22785, 497, 330, 16370, 788, 5212, 64, 788, 220, 18, 11248, 151658, 151645, 151643]
    said = '<tool_call>\n{"name": "multiply_tool", "arguments": {"a": 3}}\n</tool_call>'
    assert stand_in_tokenizer("qwen3", FIRST_SPECIAL["whole"]).decode(ids, skip_special_tokens=True) == said


def test_data_without_a_stand_in_are_told() -> None:
    told: list[str] = []
    rows = load_stand_in("trl-internal-testing/zen", "standard_prompt_only", "train", missing=told.append)
    assert rows["prompt"] == PROMPTS[:TRAINED]
    assert load_stand_in("trl-internal-testing/zen-image", "conversational_prompt_only", missing=told.append) is None
    assert told == ["trl-internal-testing/zen-image"]
