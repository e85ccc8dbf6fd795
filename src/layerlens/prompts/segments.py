"""The segments of a text: which part of a response lies between the thinking marks of its model."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import accumulate
from typing import Any

from layerlens.errors import PromptError
from layerlens.prompts.sample import Sample
from layerlens.prompts.tokens import token_texts

Marks = tuple[str, str]
"""The texts that open and close thinking."""

THINK: Marks = ("<think>", "</think>")
"""The marks of Qwen3, of DeepSeek-R1 and of most models that followed them."""

HARMONY: Marks = ("<|channel|>analysis<|message|>", "<|end|>")
"""The analysis channel of the harmony format, in which gpt-oss answers."""


def resolve_marks(marks: Sequence[str], tokenizer: Any) -> Marks:
    """The marks that are named, checked; if none are, those of the tokenizer's own format: `HARMONY` if it has that format's
    tokens, else `THINK`.

    Raises PromptError unless the marks are two texts that are not blank.
    """
    if not marks:
        vocabulary = {} if tokenizer is None else tokenizer.get_vocab()
        return HARMONY if {"<|channel|>", "<|message|>"} <= vocabulary.keys() else THINK
    if isinstance(marks, str) or len(marks) != 2 or not all(isinstance(mark, str) and mark.strip() for mark in marks):
        raise PromptError(f"thinking marks are two texts, one that opens thinking and one that closes it; got {marks!r}")
    return marks[0], marks[1]


def with_thinking(sample: Sample, tokenizer: Any, marks: Marks) -> Sample:
    """The sample with its `thinking` found in the texts of its tokens; a sample that brings its own is returned as it is.

    Thinking begins after an opening mark in the response, or with the response if the prompt ends with the opening mark (as the
    templates of DeepSeek-R1 and of Qwen3's thinking models do). It ends before the next closing mark, or with the text if
    there is none. A token that holds a part of a mark is not thinking.
    """
    if sample.thinking or tokenizer is None or not sample.has_response:
        return sample
    pieces = token_texts(tokenizer, sample.token_ids)
    prompt, response = pieces[: sample.response_start], pieces[sample.response_start :]
    inside = "".join(prompt).rstrip().endswith(marks[0])
    ends = list(accumulate(map(len, response)))
    spans = []
    for begin, end in _spans("".join(response), inside, marks):
        tokens = [i for i, piece in enumerate(response) if begin <= ends[i] - len(piece) and ends[i] <= end]
        if tokens:
            spans.append((sample.response_start + tokens[0], sample.response_start + tokens[-1] + 1))
    return replace(sample, thinking=tuple(spans))


def _spans(text: str, inside: bool, marks: Marks) -> Iterator[tuple[int, int]]:
    """First and last (exclusive) character of each stretch of thinking; `inside`: whether the text begins in one."""
    opening, closing = marks
    place = 0
    while True:
        if not inside:
            found = text.find(opening, place)
            if found < 0:
                return
            place = found + len(opening)
        end = text.find(closing, place)
        yield place, len(text) if end < 0 else end
        if end < 0:
            return
        place, inside = end + len(closing), False
