"""Prompts from files, the hub or memory, as token ids ready to be analysed."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import Any

from layerlens.errors import PromptError
from layerlens.prompts.sample import Sample
from layerlens.storage.bundled import TEMPLATES, bundled_template

Record = Mapping[str, Any]

PROMPT_COLUMNS = ("prompt", "messages", "text", "problem", "question")


def read_prompts(
    source: str | Path | Iterable[str | Record],
    model: Any,
    *,
    limit: int | None = None,
    split: str = "test",
    column: str | None = None,
    chat: bool = True,
    system: str | None = None,
    enable_thinking: bool | None = None,
    chat_template: str | None = None,
) -> list[Sample]:
    """Reads prompts, and responses where there are any, and tokenises them for a model.

    Args:
        source: a `.parquet` file (verl's layout is one: `prompt` a list of messages, `reward_model.ground_truth`), a `.jsonl`
            file with `prompt` (a text or messages) or `messages` and an optional `response`, a `.txt` file with a prompt per
            line, the name of a dataset on the hub, or texts and records in memory.
        model: a LensModel, or a tokenizer.
        limit: how many to read, from the start.
        split: which split of a hub dataset.
        column: where the prompt is; by default the first there is of prompt, messages, text, problem, question.
        chat: whether to use the model's chat template where it has one. Without one, and with `chat=False`, a prompt is
            tokenised as it stands (messages: their contents joined by blank lines).
        system: a system message to put in front, in place of one that a record brings.
        enable_thinking: passed to the chat template (Qwen3's switch) when not None.
        chat_template: a Jinja template in place of the model's own (`find_template` reads one).

    Returns:
        One Sample each, in order. A last message by the assistant counts as the response.

    Raises:
        PromptError: nothing to read, or a record without a prompt; says which and what it holds.
    """
    tokenizer = getattr(model, "tokenizer", model)
    if tokenizer is None:
        raise PromptError("reading prompts needs a tokenizer: wrap the model with one, or make Samples of token ids")
    options = {"enable_thinking": enable_thinking, "chat_template": chat_template}
    template = {name: value for name, value in options.items() if value is not None}
    samples = []
    for index, record in enumerate(_records(source, split, limit)):
        where = str(index if record.get("id") is None else record["id"])
        messages, response = _conversation(record, column, where)
        if system is not None:
            messages = _with_system(messages, system)
        prompt_ids = _prompt_ids(tokenizer, messages, chat, template, where)
        response_ids = _token_ids(tokenizer, response, where, add_special_tokens=False) if response else []
        samples.append(Sample([*prompt_ids, *response_ids], len(prompt_ids), where, _ground_truth(record)))
    if not samples:
        raise PromptError(f"{source if isinstance(source, str | Path) else 'the prompt list'} holds no prompts")
    return samples


def read_problems(
    source: str | Path | Iterable[str | Record],
    *,
    limit: int | None = None,
    split: str = "train",
    column: str | None = None,
    system: str | None = None,
) -> list[dict[str, Any]]:
    """Problems as trainers take them: one `{"prompt": messages, "ground_truth": text}` each, not tokenised.

    Sources as in `read_prompts`; a response that a record holds is left out.

    Raises PromptError as `read_prompts` does, and where a problem has no ground truth to check an answer against.
    """
    problems = []
    for index, record in enumerate(_records(source, split, limit)):
        where = str(index if record.get("id") is None else record["id"])
        messages, _ = _conversation(record, column, where)
        truth = _ground_truth(record)
        if truth is None:
            raise PromptError(f"prompt {where} has no ground truth (reward_model.ground_truth, ground_truth or answer); training needs one")
        messages = messages if system is None else _with_system(messages, system)
        problems.append({"prompt": [dict(message) for message in messages], "ground_truth": truth})
    if not problems:
        raise PromptError(f"{source if isinstance(source, str | Path) else 'the prompt list'} holds no prompts")
    return problems


def find_template(name: str) -> str:
    """The text of a chat template: one that comes with layerlens, by name, or a Jinja file. Raises PromptError where there is none."""
    file = bundled_template(name) or Path(name).expanduser()
    try:
        return file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise PromptError(f"no chat template {name}: give a Jinja file, or one of {', '.join(TEMPLATES)}") from error


def _records(source: str | Path | Iterable[str | Record], split: str, limit: int | None) -> Iterator[Record]:
    """The first `limit` records of a source, or all."""
    if limit is not None and limit < 1:
        raise PromptError(f"limit must be at least 1, got {limit}")
    return islice(_all_records(source, split), limit)


def _all_records(source: str | Path | Iterable[str | Record], split: str) -> Iterator[Record]:
    if not isinstance(source, str | Path):
        items = [source] if isinstance(source, Mapping) else source
        yield from (item if isinstance(item, Mapping) else {"prompt": item} for item in items)
        return
    path = Path(source).expanduser()
    if not path.is_file():
        if path.suffix in READERS or path.is_absolute() or str(source).count("/") != 1 or path.exists():
            raise PromptError(f"{source}: no such prompt file (known are {', '.join(READERS)}; a hub dataset is named owner/name)")
        yield from _hub_records(str(source), split)
        return
    if path.suffix not in READERS:
        raise PromptError(f"{path}: unknown kind of prompt file; known are {', '.join(READERS)}")
    yield from READERS[path.suffix](path)


def _parquet_records(path: Path) -> Iterator[Record]:
    import pyarrow
    import pyarrow.parquet

    try:
        file = pyarrow.parquet.ParquetFile(path)
        for batch in file.iter_batches(batch_size=256):
            yield from batch.to_pylist()
    except pyarrow.ArrowException as error:
        raise PromptError(f"{path}: not a readable parquet file ({error})") from error


def _jsonl_records(path: Path) -> Iterator[Record]:
    for number, line in _lines(path):
        try:
            record = json.loads(line)
        except json.JSONDecodeError as error:
            raise PromptError(f"{path}, line {number}: not JSON ({error.msg})") from error
        yield record if isinstance(record, dict) else {"prompt": record}


def _text_records(path: Path) -> Iterator[Record]:
    for _, line in _lines(path):
        yield {"prompt": line}


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    try:
        with path.open(encoding="utf-8") as file:
            for number, line in enumerate(file, 1):
                if line.strip():
                    yield number, line.strip()
    except (OSError, UnicodeDecodeError) as error:
        raise PromptError(f"{path}: can not be read ({error})") from error


READERS = {".parquet": _parquet_records, ".jsonl": _jsonl_records, ".txt": _text_records}


def _hub_records(name: str, split: str) -> Iterator[Record]:
    try:
        import datasets
    except ImportError as error:
        raise PromptError(f"{name}: reading a hub dataset needs `pip install 'layerlens-policy[hub]'` (there is no such file)") from error
    try:
        yield from datasets.load_dataset(name, split=split, streaming=True)
    except Exception as error:  # every way a download can fail, told as one line
        reason = " ".join(str(error).split())[:200]
        raise PromptError(f"{name}: no such file, and as a hub dataset it could not be read ({reason})") from error


def _conversation(record: Record, column: str | None, where: str) -> tuple[list[Mapping[str, str]], str]:
    """The messages of the prompt, and the response or an empty text."""
    names = (column,) if column else PROMPT_COLUMNS
    found = next((name for name in names if record.get(name) is not None), None)
    if found is None:
        raise PromptError(f"prompt {where} has none of the fields {', '.join(names)}; it has {', '.join(map(str, record)) or 'none'}")
    prompt = record[found]
    messages: list[Any] = list(prompt) if isinstance(prompt, Iterable) and not isinstance(prompt, str) else [prompt]
    if isinstance(prompt, str):
        messages = [{"role": "user", "content": prompt}]
    if not all(isinstance(m, Mapping) and isinstance(m.get("content"), str) and "role" in m for m in messages):
        raise PromptError(f"prompt {where}: {found!r} must be a text or a list of messages with role and content")
    response = record.get("response") or ""
    if not isinstance(response, str):
        raise PromptError(f"prompt {where}: 'response' must be a text, got {type(response).__name__}")
    if not response and messages and messages[-1]["role"] == "assistant":
        *messages, last = messages
        response = last["content"]
    if not any(message["content"].strip() for message in messages):
        raise PromptError(f"prompt {where} is empty")
    return messages, response


def _with_system(messages: list[Mapping[str, str]], system: str) -> list[Mapping[str, str]]:
    return [{"role": "system", "content": system}, *(message for message in messages if message["role"] != "system")]


def _prompt_ids(tokenizer: Any, messages: list[Mapping[str, str]], chat: bool, template: Mapping[str, Any], where: str) -> list[int]:
    if not (chat and (tokenizer.chat_template or "chat_template" in template)):
        return _token_ids(tokenizer, "\n\n".join(message["content"] for message in messages), where)
    try:
        text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True, **template)
    except Exception as error:  # a template is a program, and many refuse roles or orders by raising
        raise PromptError(f"prompt {where}: the chat template refuses it ({error}); pass chat=False (--no-chat) to do without") from error
    return _token_ids(tokenizer, text, where, add_special_tokens=False)


def _token_ids(tokenizer: Any, text: str, where: str, **options: bool) -> list[int]:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise PromptError(f"prompt {where}: not valid Unicode ({error.reason} at character {error.start})") from error
    return tokenizer(text, **options)["input_ids"]  # type: ignore[no-any-return]


def _ground_truth(record: Record) -> str | None:
    reward = record.get("reward_model")
    truth = reward.get("ground_truth") if isinstance(reward, Mapping) else record.get("ground_truth", record.get("answer"))
    return None if truth is None else str(truth)
