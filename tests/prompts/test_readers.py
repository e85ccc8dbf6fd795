"""Prompts from every kind of source: the tokens that a model should see, where the response begins, and what is refused."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

import layerlens as ll
from layerlens.errors import PromptError
from layerlens.prompts import read_problems
from tests.support.data import public_data
from tests.support.tiny_models import VOCABULARY, random_ids, tiny_tokenizer

TOKENIZER = tiny_tokenizer()
PLAIN = tiny_tokenizer(template=None)
USER, ASSISTANT, SYSTEM, THINK = (TOKENIZER.convert_tokens_to_ids(w) for w in ("user", "assistant", "system", "think"))


def ids(text: str) -> list[int]:
    return [int(word[1:]) + 8 for word in text.split()]


def chat(text: str) -> tuple[int, ...]:
    return (USER, *ids(text), ASSISTANT)


def write(path: Path, *records: Any) -> Path:
    path.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
    return path


@pytest.mark.parametrize(("name", "count"), [("math500", 500), ("amc2023", 40), ("aime_2024", 30), ("aime_2025", 30)])
def test_read_prompts_reads_the_papers_evaluation_sets(name: str, count: int) -> None:
    source = public_data(f"{name}.parquet")
    samples = ll.read_prompts(source, PLAIN)
    assert len(samples) == count
    assert all(sample.ground_truth and not sample.has_response for sample in samples)
    frame = pd.read_parquet(source)
    assert [s.ground_truth for s in samples] == [row["ground_truth"] for row in frame["reward_model"]]
    texts = ["\n\n".join(m["content"] for m in messages) for messages in frame["prompt"]]
    assert [list(s.token_ids) for s in samples] == [PLAIN(text)["input_ids"] for text in texts]
    assert [s.token_ids for s in ll.read_prompts(source, PLAIN, limit=7)] == [s.token_ids for s in samples[:7]]


def test_read_prompts_reads_parquet_in_verls_layout(tmp_path: Path) -> None:
    rows = [
        {
            "prompt": [{"role": "system", "content": "w1"}, {"role": "user", "content": f"w2 w{i}"}],
            "reward_model": {"ground_truth": t, "style": "rule"},
        }
        for i, t in enumerate(["42", "7"])
    ]
    pd.DataFrame(rows).to_parquet(tmp_path / "p.parquet")
    samples = ll.read_prompts(tmp_path / "p.parquet", TOKENIZER)
    assert [s.ground_truth for s in samples] == ["42", "7"]
    assert [s.token_ids for s in samples] == [(SYSTEM, *ids("w1"), USER, *ids(f"w2 w{i}"), ASSISTANT) for i in range(2)]
    in_memory = pd.read_parquet(tmp_path / "p.parquet").to_dict("records")  # messages as a numpy array of dicts
    assert ll.read_prompts(in_memory, TOKENIZER) == samples


def test_read_prompts_reads_jsonl_of_every_shape(tmp_path: Path) -> None:
    said = [{"role": "user", "content": "w1"}, {"role": "assistant", "content": "w5 w6"}]
    source = write(
        tmp_path / "p.jsonl",
        {"prompt": "w1 w2", "id": "a", "answer": 12},
        {"messages": said},
        {"prompt": said[:1], "response": "w7", "ground_truth": "g"},
        {"problem": "w3"},
        {"prompt": None, "question": "w4", "id": None},
        "w9",
        [said[0]],
    )
    samples = ll.read_prompts(source, TOKENIZER)
    texts = ["w1 w2", "w1", "w1", "w3", "w4", "w9", "w1"]
    answers = ["", "w5 w6", "w7", "", "", "", ""]
    for sample, text, answer in zip(samples, texts, answers, strict=True):
        assert sample.token_ids[: sample.response_start] == chat(text)
        assert TOKENIZER.decode(list(sample.token_ids[sample.response_start :])) == answer
        assert sample.has_response == bool(answer)
    assert [s.id for s in samples] == ["a", "1", "2", "3", "4", "5", "6"]
    assert [s.ground_truth for s in samples] == ["12", None, "g", None, None, None, None]


def test_read_prompts_skips_blank_lines(tmp_path: Path) -> None:
    (tmp_path / "p.txt").write_text("w1 w2\n\n   \nw3\r\n", encoding="utf-8")
    assert [s.token_ids for s in ll.read_prompts(tmp_path / "p.txt", TOKENIZER)] == [chat("w1 w2"), chat("w3")]
    (tmp_path / "p.jsonl").write_text('\n{"prompt": "w1"}\n\n', encoding="utf-8")
    assert len(ll.read_prompts(tmp_path / "p.jsonl", TOKENIZER)) == 1


def test_read_prompts_reads_every_kind_of_source_in_memory() -> None:
    expected = ll.read_prompts(["w1", "w2 w3"], TOKENIZER)
    assert [s.token_ids for s in expected] == [chat("w1"), chat("w2 w3")]

    def generator() -> Iterator[Any]:
        yield {"prompt": "w1"}
        yield [{"role": "user", "content": "w2 w3"}]

    assert ll.read_prompts(generator(), TOKENIZER) == expected
    assert ll.read_prompts({"prompt": "w1"}, TOKENIZER) == expected[:1], "one record is one prompt, not its keys"
    assert ll.read_prompts(("w1", "w1"), TOKENIZER)[1].id == "1", "the same prompt twice is two samples"
    assert [s.ground_truth for s in ll.read_prompts(pd.DataFrame({"prompt": ["w1"], "answer": [5]}).to_dict("records"), TOKENIZER)] == ["5"]


def test_read_prompts_applies_the_chat_template_or_none(qwen: ll.LensModel) -> None:
    assert ll.read_prompts(["w1"], qwen) == ll.read_prompts(["w1"], TOKENIZER), "a LensModel lends its tokenizer"
    assert ll.read_prompts(["w1 w2"], TOKENIZER, chat=False)[0].token_ids == tuple(ids("w1 w2"))
    assert ll.read_prompts(["w1 w2"], PLAIN)[0].token_ids == tuple(ids("w1 w2"))
    assert ll.read_prompts(["w1"], TOKENIZER, enable_thinking=True)[0].token_ids == (THINK, *chat("w1"))
    assert ll.read_prompts(["w1"], TOKENIZER, enable_thinking=False)[0].token_ids == chat("w1")
    assert ll.read_prompts(["w1"], TOKENIZER, system="w8")[0].token_ids == (SYSTEM, *ids("w8"), *chat("w1"))
    assert ll.read_prompts(["w1"], PLAIN, system="w8")[0].token_ids == tuple(ids("w8 w1"))
    assert ll.read_prompts([{"prompt": "w1", "other": "w2"}], TOKENIZER, column="other")[0].token_ids == chat("w2")


words = st.lists(st.integers(0, VOCABULARY - 9).map(lambda i: f"w{i}"), min_size=1, max_size=8).map(" ".join)


@given(prompt=words, response=words, use_chat=st.booleans(), as_message=st.booleans())
def test_read_prompts_puts_response_start_at_the_response(prompt: str, response: str, use_chat: bool, as_message: bool) -> None:
    said = [{"role": "user", "content": prompt}, {"role": "assistant", "content": response}]
    record = {"messages": said} if as_message else {"prompt": prompt, "response": response}
    (with_response,) = ll.read_prompts([record], TOKENIZER, chat=use_chat)
    (alone,) = ll.read_prompts([prompt], TOKENIZER, chat=use_chat)
    assert TOKENIZER.decode(list(with_response.token_ids[with_response.response_start :])) == response
    assert with_response.token_ids[: with_response.response_start] == alone.token_ids
    assert alone.response_start == len(alone.token_ids)


def test_read_prompts_keeps_unicode_and_unknown_words(tmp_path: Path) -> None:
    (tmp_path / "p.txt").write_text("∑ w1 \u202e 数学 🙂\n", encoding="utf-8")
    (sample,) = ll.read_prompts(tmp_path / "p.txt", TOKENIZER)
    assert ids("w1")[0] in sample.token_ids


BAD = [
    ({"prompt": 5}, "a text or a list of messages"),
    ({"prompt": True}, "a text or a list of messages"),
    ({"prompt": {"role": "user", "content": "w1"}}, "a text or a list of messages"),
    ({"prompt": ["w1"]}, "a text or a list of messages"),
    ({"prompt": [{"role": "user", "content": ["w1"]}]}, "a text or a list of messages"),
    ({"prompt": [{"content": "w1"}]}, "a text or a list of messages"),
    ({"prompt": [{"role": "user", "content": None}]}, "a text or a list of messages"),
    ({"prompt": "w1", "response": 5}, "'response' must be a text, got int"),
    ({"prompt": "w1", "response": ["w1"]}, "'response' must be a text, got list"),
    ({"prompt": ""}, "is empty"),
    ({"prompt": "   \n"}, "is empty"),
    ({"prompt": []}, "is empty"),
    ({"messages": [{"role": "assistant", "content": "w1"}]}, "is empty"),
    ({"prompt": None}, "none of the fields"),
    ({"text_": "w1", 3: 4}, "none of the fields"),
    ({}, "it has none"),
    ({"prompt": "w1 \ud800"}, "not valid Unicode"),
    ({"prompt": "w1", "response": "\udfff"}, "not valid Unicode"),
    (5, "a text or a list of messages"),
    (None, "none of the fields"),
]


@pytest.mark.parametrize(("record", "message"), BAD)
def test_read_prompts_names_a_bad_record(record: Any, message: str) -> None:
    with pytest.raises(PromptError, match=message) as caught:
        ll.read_prompts(iter(["w1", record]), TOKENIZER)
    assert "prompt 1" in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("line", ["5", "null", "true", "[]", '{"prompt": 7}', '["w1"]', '{"prompt": "\\ud800"}'])
def test_read_prompts_refuses_odd_json_lines(line: str, tmp_path: Path) -> None:
    (tmp_path / "p.jsonl").write_text(line + "\n", encoding="utf-8")
    with pytest.raises(PromptError, match="prompt 0"):
        ll.read_prompts(tmp_path / "p.jsonl", TOKENIZER)


def test_read_prompts_names_a_bad_file(tmp_path: Path) -> None:
    def refused(source: str | Path, message: str, **more: Any) -> None:
        with pytest.raises(PromptError, match=message) as caught:
            ll.read_prompts(source, TOKENIZER, **more)
        assert "\n" not in str(caught.value)

    (tmp_path / "bad.jsonl").write_text('{"prompt": "w1"}\n\n{"prompt": \n', encoding="utf-8")
    refused(tmp_path / "bad.jsonl", r"bad\.jsonl, line 3: not JSON")
    (tmp_path / "empty.jsonl").write_text("\n\n")
    refused(tmp_path / "empty.jsonl", "holds no prompts")
    (tmp_path / "empty.txt").write_text("")
    refused(tmp_path / "empty.txt", "holds no prompts")
    pd.DataFrame({"prompt": []}).to_parquet(tmp_path / "empty.parquet")
    refused(tmp_path / "empty.parquet", "holds no prompts")
    (tmp_path / "bad.parquet").write_bytes(b"PAR1 no")
    refused(tmp_path / "bad.parquet", "not a readable parquet file")
    (tmp_path / "zero.parquet").write_bytes(b"")
    refused(tmp_path / "zero.parquet", "not a readable parquet file")
    (tmp_path / "latin.txt").write_bytes("naïve".encode("latin-1"))
    refused(tmp_path / "latin.txt", "cannot be read")
    (tmp_path / "p.csv").write_text("w1")
    refused(tmp_path / "p.csv", "unknown kind")
    refused(tmp_path / "none.jsonl", "no such prompt file")
    refused("none.parquet", "no such prompt file")
    refused("just-a-name", "no such prompt file")
    refused(tmp_path, "no such prompt file")
    refused("no-such-owner/no-such-data", "as a hub dataset it could not be read")
    (tmp_path / "ok.txt").write_text("w1\n")
    refused(tmp_path / "ok.txt", "limit must be at least 1", limit=0)
    refused(tmp_path / "ok.txt", "none of the fields problem", column="problem")


def test_read_prompts_refuses_an_empty_list_and_a_missing_tokenizer() -> None:
    with pytest.raises(PromptError, match="the prompt list holds no prompts"):
        ll.read_prompts([], TOKENIZER)
    with pytest.raises(PromptError, match="needs a tokenizer"):
        ll.read_prompts(["w1"], None)


def test_read_prompts_tells_that_a_template_refuses() -> None:
    strict = tiny_tokenizer("{{ raise_exception('roles must alternate') }}")
    with pytest.raises(PromptError, match=r"prompt 0: the chat template refuses it \(roles must alternate\)"):
        ll.read_prompts(["w1"], strict)
    assert ll.read_prompts(["w1"], strict, chat=False)[0].token_ids == tuple(ids("w1"))
    with pytest.raises(PromptError, match="no tokens"):
        ll.read_prompts(["w1"], tiny_tokenizer("{{ '' }}"))


def test_sample_refuses_no_tokens_and_a_bad_response_start() -> None:
    for wrong in ([], ()):
        with pytest.raises(PromptError, match="no tokens"):
            ll.Sample(wrong)
    for start in (-1, 4):
        with pytest.raises(PromptError, match=rf"response_start must be in 0\.\.3, got {start}"):
            ll.Sample([1, 2, 3], start)
    assert not ll.Sample([1, 2, 3], 3).has_response
    assert ll.Sample([1, 2, 3], 2).has_response


def test_analyze_names_a_prompt_that_does_not_fit_before_the_model_runs(
    qwen: ll.LensModel, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(type(qwen.parts.model), "forward", lambda *_, **__: pytest.fail("the model ran"))
    monkeypatch.setattr(type(qwen.parts.decoder), "forward", lambda *_, **__: pytest.fail("the model ran"))
    fits, out = ll.Sample(random_ids(5), 2), tmp_path / "run"

    def refused(sample: ll.Sample, message: str, **more: Any) -> None:
        with pytest.raises(PromptError, match=message):
            ll.analyze(qwen, [fits, sample], out=out, **more)
        assert not out.exists()

    refused(ll.Sample(random_ids(129), 5, id="long one"), r"prompt long one: 129 tokens exceed the context of tiny-random \(128\)")
    refused(ll.Sample(random_ids(100), 100), r"prompt 1: 100 tokens and 29 new tokens exceed", generate=ll.Generation(29))
    refused(ll.Sample([5, VOCABULARY]), rf"prompt 1: a token id lies outside the vocabulary of tiny-random \({VOCABULARY} tokens\)")
    refused(ll.Sample([5, -1]), "outside the vocabulary")
    refused(ll.Sample([5]), "has no response token to decode", rows="response", generate=ll.Generation(4))
    refused(ll.Sample(random_ids(4), 4), "prompt 1 has no response token to decode", rows="response")


def test_read_problems_gives_messages_and_ground_truths() -> None:
    said = [{"role": "user", "content": "w1"}, {"role": "assistant", "content": "w2"}]
    problems = read_problems([{"messages": said, "answer": 7}, {"problem": "w3", "ground_truth": "x"}], system="w9")
    instruction = {"role": "system", "content": "w9"}
    assert problems == [
        {"prompt": [instruction, said[0]], "ground_truth": "7"},
        {"prompt": [instruction, {"role": "user", "content": "w3"}], "ground_truth": "x"},
    ]
    with pytest.raises(PromptError, match="prompt 1 has no ground truth"):
        read_problems([{"prompt": "w1", "answer": "1"}, {"prompt": "w1"}])
    with pytest.raises(PromptError, match="the prompt list holds no prompts"):
        read_problems([])
