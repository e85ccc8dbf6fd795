"""Segments of texts: what lies between the thinking marks of a model, in every format and under every tokenization."""

from __future__ import annotations

import re

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import AddedToken

import layerlens as ll
from layerlens.errors import PromptError, SelectionError
from layerlens.models import LensModel
from layerlens.prompts.segments import HARMONY, THINK, resolve_marks, with_thinking
from tests.support.tiny_models import byte_tokenizer, random_ids, tiny_model

BYTES = byte_tokenizer(None)
SPECIAL = byte_tokenizer(None)
SPECIAL.add_special_tokens({"additional_special_tokens": [AddedToken(mark) for mark in THINK]})
HARMONY_TOKENS = ["<|start|>", "<|channel|>", "<|message|>", "<|end|>", "<|return|>"]
HARMONIC = byte_tokenizer(None)
HARMONIC.add_special_tokens({"additional_special_tokens": HARMONY_TOKENS})


def thought(tokenizer, prompt: str, response: str, marks: tuple[str, ...] = ()) -> list[str]:
    """The texts of the stretches in which a response thinks."""
    start, answer = (tokenizer(text, add_special_tokens=False)["input_ids"] for text in (prompt, response))
    sample = with_thinking(ll.Sample([*start, *answer], len(start)), tokenizer, resolve_marks(marks, tokenizer))
    return [tokenizer.decode(sample.token_ids[first:last]) for first, last in sample.thinking]


@pytest.mark.parametrize("tokenizer", [BYTES, SPECIAL], ids=["bytes", "special tokens"])
@pytest.mark.parametrize(("prompt", "response", "expected"), [
    ("assistant\n", "<think>\na b\n</think>\n\nc", ["\na b\n"]),  # Qwen3
    ("assistant\n<think>\n\n</think>\n\n", "c", []),  # Qwen3 told not to think
    ("<think>\n", "a\n</think>\n\nc", ["a\n"]),  # DeepSeek-R1, whose template opens thinking
    ("<think>\n", "a that never en", ["a that never en"]),
    ("think between <think> and </think>.", "c", []),
    ("Begin with <think>.", "c", []),
    ("", "<think>a</think>b<think>c</think></think>", ["a", "c"]),
    ("", "<think></think>c", []),
    ("", "no marks", []),
    ("", "€<think>é€</think>ü", ["é€"]),
])  # fmt: skip
def test_thinking_is_what_lies_between_the_marks(tokenizer, prompt: str, response: str, expected: list[str]) -> None:
    assert thought(tokenizer, prompt, response) == expected


def test_harmony_thinks_in_its_analysis_channel() -> None:
    response = "<|channel|>analysis<|message|>a<|end|><|start|>assistant<|channel|>final<|message|>c<|return|>"
    assert thought(HARMONIC, "<|start|>assistant", response) == ["a"]
    assert thought(HARMONIC, "<|start|>assistant", "<|channel|>commentary<|message|>b<|end|>" + response) == ["a"]
    assert thought(HARMONIC, "<|start|>assistant<|channel|>analysis<|message|>", "a<|end|>c") == ["a"]


def test_marks_can_be_named() -> None:
    assert resolve_marks((), None) == resolve_marks((), BYTES) == THINK
    assert resolve_marks((), HARMONIC) == HARMONY
    assert thought(BYTES, "", "[a]b<think>c</think>", ("[", "]")) == ["a"]
    for marks in (("[",), ("[", " "), ("[", "]", "]"), "ab"):
        with pytest.raises(PromptError, match="two texts"):
            resolve_marks(marks, BYTES)


@given(st.lists(st.sampled_from(["<think>", "</think>", "a", "é", " ", "<"]), max_size=12), st.booleans())
def test_segments_do_not_depend_on_how_the_text_is_cut_into_tokens(parts: list[str], opened: bool) -> None:
    prompt, response = "p<think>" if opened else "p", "".join(parts) + "."
    whole = "<think>" * opened + response
    expected = [found for found in re.findall(r"<think>(.*?)(?:</think>|$)", whole) if found]
    assert thought(BYTES, prompt, response) == expected
    assert thought(SPECIAL, prompt, response) == expected


def test_a_row_has_the_segment_of_the_token_that_it_predicts() -> None:
    sample = ll.Sample(range(8), 3, thinking=((4, 6),))
    assert sample.segment.tolist() == ["prompt", "prompt", "answer", "thinking", "thinking", "answer", "answer", ""]
    np.testing.assert_array_equal(np.isin(sample.segment, ["thinking", "answer"]), sample.in_response)
    with pytest.raises(PromptError, match=r"thinking must lie in the response, 3\.\.8"):
        ll.Sample(range(8), 3, thinking=((2, 6),))
    own = with_thinking(sample, BYTES, THINK)
    assert own.thinking == ((4, 6),)


@pytest.fixture(scope="module")
def run() -> ll.Run:
    model = LensModel.wrap(tiny_model("qwen3", vocab_size=300), BYTES)
    texts = [("ask", "[ab]cd"), ("why", "[a]b"), ("so", "ab")]
    encoded = [[BYTES(text)["input_ids"] for text in pair] for pair in texts]
    return ll.analyze(model, [ll.Sample(p + r, len(p)) for p, r in encoded], metrics="entropy", thinking_marks=("[", "]"))


def test_run_stores_segments_and_the_marks(run: ll.Run) -> None:
    assert run.manifest.config.thinking_marks == ("[", "]")
    assert run.sample(0)["segment"].values.tolist() == [*["prompt"] * 2, "answer", "thinking", "thinking", *["answer"] * 3, ""]
    assert run.data["response_text"].values.tolist() == ["[ab]cd", "[a]b", "ab"]
    assert set(run.to_frame()["segment"]) == {"prompt", "thinking", "answer", ""}


def test_means_over_a_segment_are_over_its_rows(run: ll.Run) -> None:
    entropy, segment, sample = (run.data[name].values for name in ("entropy", "segment", "sample"))
    for name, samples in (("prompt", 3), ("thinking", 2), ("answer", 3)):
        mean = run.mean("entropy", segment=name)
        each = [
            entropy[(segment == name) & (sample == i)].mean(0, dtype=float) for i in range(3) if ((segment == name) & (sample == i)).any()
        ]
        np.testing.assert_allclose(mean["mean"], np.mean(each, axis=0), rtol=1e-12)
        assert (mean.attrs["segment"], mean.attrs["samples"]) == (name, samples)
    tokens = {name: run.row_mask(segment=name).sum() for name in ("thinking", "answer")}
    parts = sum(run.mean("entropy", segment=name, over="token")["mean"] * n for name, n in tokens.items()) / sum(tokens.values())
    np.testing.assert_allclose(parts, run.mean("entropy", over="token")["mean"], rtol=1e-12)
    difference = ll.difference(run, run, segment="thinking", over="token")
    assert (difference.attrs["segment"], float(abs(difference["mean"]).max())) == ("thinking", 0.0)


def test_a_segment_that_is_not_there_is_refused_with_the_way_out() -> None:
    plain = ll.analyze(LensModel.wrap(tiny_model("qwen3")), [ll.Sample(random_ids(6), 2)], metrics="entropy")
    with pytest.raises(SelectionError, match=r"no thinking rows, only prompt and answer; .* <think> </think>: .* thinking_marks="):
        plain.mean("entropy", segment="thinking")
