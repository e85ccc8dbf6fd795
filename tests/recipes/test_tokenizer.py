from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from recipes.tiny_models.batches import encode_problem
from recipes.tiny_models.tokenizer import build_tokenizer
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from layerlens.prompts.arithmetic import problems

SPECIAL = ("<|pad|>", "<|bos|>", "<|end|>", "<|system|>", "<|user|>", "<|assistant|>")


@pytest.fixture(scope="module")
def tokenizer(built_tokenizer: PreTrainedTokenizerBase) -> PreTrainedTokenizerBase:
    return built_tokenizer


def test_tokenizer_round_trip_on_problems(tokenizer: PreTrainedTokenizerBase) -> None:
    used: set[int] = set()
    for problem in problems("validation", 400, 0):
        for text in (problem.prompt[0]["content"], problem.solution):
            ids = tokenizer(text)["input_ids"]
            assert tokenizer.decode(ids) == text
            used.update(ids)
    assert len(used) > 300


@given(st.text())
@settings(deadline=None)
def test_tokenizer_round_trip_on_any_text(tokenizer: PreTrainedTokenizerBase, text: str) -> None:
    ids = tokenizer(text)["input_ids"]
    assert tokenizer.decode(ids) == text
    assert all(0 <= i < len(tokenizer) for i in ids)


@given(st.integers(0, 10**12))
@settings(deadline=None)
def test_tokenizer_makes_every_digit_one_token(tokenizer: PreTrainedTokenizerBase, number: int) -> None:
    assert tokenizer.convert_ids_to_tokens(tokenizer(str(number))["input_ids"]) == list(str(number))


def test_tokenizer_size_and_special_tokens(tokenizer: PreTrainedTokenizerBase) -> None:
    assert len(tokenizer) > 300
    assert tokenizer.convert_tokens_to_ids(list(SPECIAL)) == list(range(6))
    assert (tokenizer.pad_token, tokenizer.bos_token, tokenizer.eos_token) == SPECIAL[:3]
    assert tokenizer("12")["input_ids"] == tokenizer("12", add_special_tokens=False)["input_ids"]


def test_tokenizer_chat_template(tokenizer: PreTrainedTokenizerBase) -> None:
    chat = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "What is 1 + 1?"}]
    opened = tokenizer.apply_chat_template(chat, add_generation_prompt=True, tokenize=False)
    assert opened == "<|bos|><|system|>Be brief.<|end|><|user|>What is 1 + 1?<|end|><|assistant|>"
    assert tokenizer.apply_chat_template(chat, tokenize=False) + "<|assistant|>" == opened


def test_encode_problem_gives_the_ids_of_the_finished_chat(tokenizer: PreTrainedTokenizerBase) -> None:
    """Prompt ids followed by solution ids are the template's own ids of the finished chat."""
    for problem in problems("train", 40, 0):
        prompt, solution = encode_problem(problem, tokenizer)
        chat = [*problem.prompt, {"role": "assistant", "content": problem.solution}]
        assert prompt + solution == tokenizer.apply_chat_template(chat)["input_ids"]


def test_build_tokenizer_gives_the_same_file_and_loads(tokenizer: PreTrainedTokenizerBase, tmp_path: Path) -> None:
    for name in ("one", "two"):
        build_tokenizer(1_000).save_pretrained(tmp_path / name)
    assert (tmp_path / "one/tokenizer.json").read_bytes() == (tmp_path / "two/tokenizer.json").read_bytes()
    tokenizer.save_pretrained(tmp_path / "whole")
    loaded = AutoTokenizer.from_pretrained(tmp_path / "whole")
    chat = list(problems("test", 1, 0)[0].prompt)
    assert loaded.apply_chat_template(chat)["input_ids"] == tokenizer.apply_chat_template(chat)["input_ids"]
    assert (loaded.pad_token, loaded.padding_side) == (tokenizer.pad_token, "left")
