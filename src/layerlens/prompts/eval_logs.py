"""What evaluation tools wrote of their samples, as records: inspect_ai's logs, lm-evaluation-harness, lighteval."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from layerlens.errors import PromptError, message_of

THINKING = "<think>\n{reasoning}\n</think>\n\n{text}"
"""How reasoning that a log keeps apart stands in the response: as Qwen3 and DeepSeek-R1 write it."""

RIGHT = 0.5
"""A score above this counts as right."""


def inspect_records(path: Path) -> Iterator[Mapping[str, Any]]:
    """The samples of an inspect_ai log, `.eval` (a zip file) or `.json`, one record each: messages, response, target, right or not.

    The response is the last message by the assistant. Its first score says whether it is right: "C", or a number above 0.5.

    Raises PromptError if the file is no log, is damaged, or is packed with zstd and no library that reads zstd is installed.
    """
    try:
        if path.suffix == ".json":
            log = json.loads(path.read_text(encoding="utf-8"))
            if not (isinstance(log, dict) and "eval" in log):
                raise PromptError(f"{path}: not a log of inspect_ai; a .json file is read if it is one, prompts are read from .jsonl")
            samples = iter(log.get("samples") or ())
        else:
            samples = _packed_samples(path)
        for sample in samples:
            yield _inspect_record(sample)
    except (OSError, zipfile.BadZipFile, ValueError, KeyError, TypeError, AttributeError) as error:
        raise PromptError(f"{path}: cannot be read as a log of inspect_ai ({message_of(error)})") from error


def _packed_samples(path: Path) -> Iterator[Any]:
    with suppress(ImportError):
        import zipfile_zstd  # noqa: F401  # teaches zipfile to read zstd
    with zipfile.ZipFile(path) as archive:
        names = [name for name in archive.namelist() if name.startswith("samples/") and name.endswith(".json")]
        for name in names:
            try:
                text = archive.read(name)
            except NotImplementedError as error:  # zipfile's word for a compression that it does not know
                raise PromptError(f"{path} is packed with zstd: pip install 'layerlens-policy[inspect]'") from error
            yield json.loads(text)


def _inspect_record(sample: Mapping[str, Any]) -> dict[str, Any]:
    kept = sample.get("attachments") or {}
    messages = [{"role": message["role"], "content": _content(message["content"], kept)} for message in sample["messages"]]
    last = max((number for number, message in enumerate(messages) if message["role"] == "assistant"), default=None)
    response = messages[last]["content"] if last is not None else ""
    scores = [score["value"] for score in (sample.get("scores") or {}).values()]
    target = sample.get("target")
    epoch = sample.get("epoch", 1)
    return {
        "id": f"{sample['id']}" if epoch == 1 else f"{sample['id']} (epoch {epoch})",
        "messages": messages[:last],
        "response": response,
        "ground_truth": target[0] if isinstance(target, list) and target else target,
        "correct": _right(scores[0]) if scores else None,
    }


def _content(content: Any, attachments: Mapping[str, str]) -> str:
    """A message's text, its reasoning in front in think marks; images and the like are left out."""
    if isinstance(content, str):
        return _attached(content, attachments)
    reasoning = "".join(_attached(part["reasoning"], attachments) for part in content if part.get("type") == "reasoning")
    text = "".join(_attached(part["text"], attachments) for part in content if part.get("type") == "text")
    return THINKING.format(reasoning=reasoning.strip(), text=text) if reasoning else text


def _attached(text: str, attachments: Mapping[str, str]) -> str:
    """The text itself; inspect_ai keeps long ones once, under "attachment://" and a digest."""
    return attachments.get(text.removeprefix("attachment://"), text) if text.startswith("attachment://") else text


def _right(score: Any) -> bool | None:
    """Whether a score says right; None if it says neither: "C" and "I" (also "P", partly, and "N", no answer) or a number."""
    if isinstance(score, str):
        return {"C": True, "I": False, "P": False, "N": False}.get(score)
    return score > RIGHT if isinstance(score, int | float) else None


def plain_records(row: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    """A row of a `.jsonl` or `.parquet` file as records: those of lm-evaluation-harness and lighteval in our fields, others as they are.

    Raises PromptError for a sample of lm-evaluation-harness whose answer is no text (multiple choice).
    """
    if {"doc_id", "arguments", "resps"} <= row.keys():
        yield from _harness_records(row)
    elif {"doc", "model_response", "metric"} <= row.keys():
        yield from _lighteval_records(row)
    else:
        yield row


def _harness_records(row: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """One record per answer of a `samples_*.jsonl` row. The prompt is the text that the model read, with its template if it had one."""
    arguments, answers = row["arguments"], row["resps"]
    given = arguments["gen_args_0"] if isinstance(arguments, Mapping) else arguments[0]
    prompt, settings = (given["arg_0"], given.get("arg_1")) if isinstance(given, Mapping) else (given[0], given[1])
    if not isinstance(settings, Mapping):
        raise PromptError(f"sample {row['doc_id']} of lm-evaluation-harness holds no sampled text: only generate_until tasks can be read")
    texts = answers[0] if answers and isinstance(answers[0], list) else answers
    scores = [row.get(name) for name in row.get("metrics", ())]
    right = _right(scores[0]) if scores and len(texts) == 1 else None
    for number, text in enumerate(texts):
        yield {
            "id": _answer_name(row["doc_id"], number, len(texts)),
            "prompt": prompt,
            "rendered": True,
            "response": text,
            "ground_truth": row.get("target"),
            "correct": right,
        }


def _lighteval_records(row: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """One record per answer of a details file's row. One score for several answers says of none whether it is right."""
    doc, answer = row["doc"], row["model_response"]
    prompt = answer.get("input") or doc["query"]
    texts: Sequence[str] = answer["text"] or ()
    gold = doc["gold_index"][0] if isinstance(doc.get("gold_index"), list) else doc.get("gold_index")
    reasonings = list(answer.get("reasonings") or ()) + [None] * len(texts)
    scores = [score for score in (row["metric"] or {}).values() if score is not None]
    for number, (text, reasoning) in enumerate(zip(texts, reasonings, strict=False)):
        yield {
            "id": _answer_name(doc.get("id") or None, number, len(texts)),
            "prompt": prompt if isinstance(prompt, str) else [dict(message) for message in prompt],
            "rendered": isinstance(prompt, str),
            "response": THINKING.format(reasoning=reasoning.strip(), text=text) if reasoning else text,
            "ground_truth": doc["choices"][gold] if gold is not None and doc.get("choices") else None,
            "correct": _right(scores[0]) if scores and len(texts) == 1 else None,
        }


def _answer_name(name: Any, number: int, answers: int) -> str | None:
    return None if name is None else str(name) if answers == 1 else f"{name} (answer {number + 1})"
