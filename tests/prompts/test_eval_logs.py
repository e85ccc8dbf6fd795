"""Texts from what evaluation tools wrote: prompts, responses, truths, and whether each was right."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

import layerlens as ll
from layerlens.errors import PromptError, SelectionError
from layerlens.prompts.records import read_records
from tests.support.tiny_models import tiny_model, tiny_tokenizer

PACKED = Path(__file__).parent / "logs" / "inspect_ai-0.3.285.eval"
"""Two samples, written by inspect_ai 0.3.285 itself (`write_eval_log`), packed with zstd."""

ROW = {
    "doc_id": 3, "doc": {"q": "w1"}, "target": "w2",
    "arguments": {"gen_args_0": {"arg_0": "user w1 assistant", "arg_1": {"until": []}}},
    "resps": [["w2 w3"]], "filtered_resps": ["w2"], "filter": "none", "metrics": ["exact_match"], "exact_match": 1.0,
}  # fmt: skip
"""A row of lm-evaluation-harness 0.4.13 (`--log_samples`), whose prompt went through a chat template."""


def message(role: str, content: Any) -> dict[str, Any]:
    return {"id": "m", "role": role, "content": content}


def log(*samples: dict[str, Any]) -> dict[str, Any]:
    return {"version": 2, "status": "success", "eval": {"task": "sums"}, "samples": list(samples)}


def inspect_sample(number: int, answer: Any, **given: Any) -> dict[str, Any]:
    messages = [message("system", "w9"), message("user", f"w{number}"), message("assistant", answer)]
    return {"id": number, "epoch": 1, "input": f"w{number}", "target": "w5", "messages": messages, "scores": {}, **given}


def test_a_log_of_inspect_ai_gives_its_messages_responses_truths_and_scores() -> None:
    right, wrong = read_records(PACKED, "test", None)
    system = {"role": "system", "content": "Be brief."}
    assert right == {
        "id": "a", "messages": [system, {"role": "user", "content": "What is 2+3?"}], "response": "5", "ground_truth": "5", "correct": True,
    }  # fmt: skip
    assert (wrong["id"], wrong["ground_truth"], wrong["correct"]) == ("2", "6", False)
    assert wrong["response"] == "<think>\nTwo and four.\n</think>\n\n7", "reasoning is kept apart in the log"


def test_both_forms_of_inspect_ais_logs_are_read_alike_and_its_attachments_put_back(tmp_path: Path) -> None:
    samples = [
        inspect_sample(1, "attachment://abc", attachments={"abc": "w5 w6"}, scores={"match": {"value": 0.9}, "other": {"value": "I"}}),
        inspect_sample(2, [{"type": "text", "text": "w5"}, {"type": "image", "image": "x"}], epoch=2, scores={"match": {"value": "N"}}),
        inspect_sample(3, "w7", scores={"grade": {"value": "B+"}}, target=["w5", "w6"]),
        inspect_sample(4, "w7"),
    ]
    (tmp_path / "log.json").write_text(json.dumps(log(*samples)))
    with zipfile.ZipFile(tmp_path / "log.eval", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("header.json", json.dumps({"eval": {}}))
        for sample in samples:
            archive.writestr(f"samples/{sample['id']}_epoch_{sample['epoch']}.json", json.dumps(sample))
    one, other = (ll.read_prompts(tmp_path / name, tiny_tokenizer()) for name in ("log.json", "log.eval"))
    assert one == other
    assert [sample.id for sample in one] == ["1", "2 (epoch 2)", "3", "4"]
    assert [sample.correct for sample in one] == [True, False, None, None]
    assert [sample.ground_truth for sample in one] == ["w5"] * 4
    assert [len(sample.token_ids) - sample.response_start for sample in one] == [2, 1, 1, 1]


def test_a_row_of_lm_evaluation_harness_is_read_as_the_model_read_it(tmp_path: Path) -> None:
    file = tmp_path / "samples_sums.jsonl"
    several = {**ROW, "doc_id": 4, "resps": [["w2", "w4 w4"]], "exact_match": 0.0}
    file.write_text("\n".join(map(json.dumps, (ROW, several))))
    tokenizer = tiny_tokenizer()
    first, *answers = ll.read_prompts(file, tokenizer)
    prompt = [tokenizer.convert_tokens_to_ids(word) for word in ("user", "w1", "assistant")]
    assert list(first.token_ids[: first.response_start])[-3:] == prompt
    assert first.token_ids.count(prompt[0]) == 1, "the template is not put around it again"
    assert (first.id, first.ground_truth, first.correct) == ("3", "w2", True)
    assert [(answer.id, answer.correct) for answer in answers] == [("4 (answer 1)", None), ("4 (answer 2)", None)]
    assert ll.read_prompts(file, tokenizer, limit=2) == [first, answers[0]]
    with pytest.raises(PromptError, match=r"^prompt 3 is the very text that a model read.*leave out the system message$"):
        ll.read_prompts(file, tokenizer, system="w1")


def test_multiple_choice_of_lm_evaluation_harness_has_no_text_to_read(tmp_path: Path) -> None:
    file = tmp_path / "samples_choice.jsonl"
    file.write_text(json.dumps({**ROW, "arguments": {"gen_args_0": {"arg_0": "w1", "arg_1": " w2"}}, "resps": [[["-1.5", "False"]]]}))
    with pytest.raises(PromptError, match=r"^sample 3 of lm-evaluation-harness holds no sampled text: only generate_until"):
        ll.read_prompts(file, tiny_tokenizer())


@pytest.mark.parametrize("chat", [False, True])
def test_a_details_file_of_lighteval_gives_a_record_per_answer(chat: bool, tmp_path: Path) -> None:
    prompt = [{"role": "user", "content": "w1"}] if chat else "user w1 assistant"
    doc = {"query": "w1", "choices": ["w8", "w2"], "gold_index": [1], "id": "q1"}
    rows = [
        {"doc": doc, "model_response": {"input": prompt, "text": ["w2"], "reasonings": ["w5"]}, "metric": {"extractive_match": 1.0}},
        {"doc": {**doc, "id": "q2"}, "model_response": {"input": prompt, "text": ["w2", "w3"], "reasonings": []}, "metric": {"avg": 0.5}},
    ]
    pd.DataFrame(rows).to_parquet(tmp_path / "details.parquet")
    samples = ll.read_prompts(tmp_path / "details.parquet", tiny_tokenizer())
    assert [(sample.id, sample.ground_truth, sample.correct) for sample in samples] == [
        ("q1", "w2", True), ("q2 (answer 1)", "w2", None), ("q2 (answer 2)", "w2", None),
    ]  # fmt: skip
    assert len({sample.token_ids[: sample.response_start] for sample in samples}) == 1
    assert len(samples[0].token_ids) > len(samples[1].token_ids), "the reasoning stands in front of the answer"


def test_a_run_keeps_what_its_source_said_of_each_response(tmp_path: Path) -> None:
    lens = ll.LensModel.wrap(tiny_model(), tiny_tokenizer())
    records = [{"prompt": "w1", "response": "w2", "correct": True}, {"prompt": "w3", "response": "w2", "correct": 0}]
    ll.analyze(lens, ll.read_prompts(records, lens), out=tmp_path / "said", metrics="entropy")
    run = ll.open_run(tmp_path / "said")
    np.testing.assert_array_equal(run.correct("recorded"), [True, False])
    unsaid = ll.analyze(lens, ll.read_prompts([*records, {"prompt": "w3", "response": "w4", "id": "new"}], lens), metrics="entropy")
    with pytest.raises(SelectionError, match=r"^the source of sample new did not say whether its response is right; name a reward$"):
        unsaid.correct("recorded")
    assert ll.read_prompts([{"prompt": "w1", "correct": True}], lens)[0].correct is None, "there is no response to be right"
    with pytest.raises(PromptError, match=r"^prompt 0: 'correct' must be true or false, got 'yes'$"):
        ll.read_prompts([{"prompt": "w1", "response": "w2", "correct": "yes"}], lens)


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("x.json", b'[{"prompt": "w1"}]', "not a log of inspect_ai; a .json file is read if it is one"),
        ("x.json", b"{", "cannot be read as a log of inspect_ai"),
        ("x.json", json.dumps(log({"id": 1})).encode(), "cannot be read as a log of inspect_ai"),
        ("x.json", json.dumps(log()).encode(), "holds no prompts"),
        ("x.eval", b"PK no zip", "cannot be read as a log of inspect_ai (File is not a zip file)"),
        ("x.eval", PACKED.read_bytes()[:-400], "cannot be read as a log of inspect_ai"),
    ],
)
def test_what_is_no_log_is_one_line(name: str, content: bytes, said: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(PromptError) as error:
        ll.read_prompts(tmp_path / name, tiny_tokenizer())
    assert said in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("odd", [{"metrics": [{}]}, {"resps": 3}, {"arguments": []}, {"arguments": {"gen_args_0": 1}}])
def test_a_row_of_other_types_is_one_line(odd: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "samples_sums.jsonl").write_text(f"{json.dumps(ROW)}\n{json.dumps({**ROW, **odd})}\n")
    with pytest.raises(PromptError, match=r"samples_sums\.jsonl, line 2: not as lm-evaluation-harness or lighteval write it"):
        ll.read_prompts(tmp_path / "samples_sums.jsonl", tiny_tokenizer())


def test_a_log_packed_with_zstd_names_the_extra_that_reads_it(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> bytes:
        raise NotImplementedError("That compression method is not supported")

    monkeypatch.setattr(zipfile.ZipFile, "read", refuse)
    with pytest.raises(PromptError, match=r"is packed with zstd: pip install 'layerlens-policy\[inspect\]'$"):
        ll.read_prompts(PACKED, tiny_tokenizer())
