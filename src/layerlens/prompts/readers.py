"""What users read: prompts as token ids for a model, problems as messages for a trainer, and chat templates."""

from __future__ import annotations

import datetime
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from layerlens.errors import PromptError
from layerlens.prompts.chat_template import template_of, warn_of_unread_switch, with_date, writes_date
from layerlens.prompts.conversation import Conversation, read_conversation, to_sample
from layerlens.prompts.records import Record, read_records
from layerlens.prompts.sample import Sample
from layerlens.storage.bundled import TEMPLATES, bundled_template


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
    date: str | None = None,
) -> list[Sample]:
    """Reads prompts, and responses if the source holds any, and tokenises them for a model.

    Args:
        source: a `.parquet` file (in verl's layout, say: `prompt` a list of messages, `reward_model.ground_truth`), a `.jsonl`
            file with `prompt` (a text or messages) or `messages` and an optional `response`, a `.txt` file with a prompt per
            line, a log of inspect_ai (`.eval`, `.json`), samples of lm-evaluation-harness (`samples_*.jsonl`, generate_until) or
            lighteval (`details_*.parquet`) with their responses and whether each was right (`Sample.correct`), the name of a dataset
            on the hub, or texts and records in memory.
        model: a LensModel, or a tokenizer.
        limit: the number of prompts to read, from the start; by default all.
        split: the split of a hub dataset.
        column: the field that holds the prompt; by default the first there is of prompt, messages, text, problem, question.
        chat: whether to use the chat template, if there is one. Without a template (base models), or with `chat=False`, a prompt is
            tokenised as it stands (messages: their contents joined by blank lines), BOS in front if the tokenizer puts it there.
        system: a system message to put in front, in place of one that a record brings. If the template takes none (Gemma 2), its text
            is put in front of the first user message, with a warning.
        enable_thinking: passed to the chat template (Qwen3's switch) unless None; a warning says if the template does not read it.
        chat_template: a Jinja template in place of the model's own (`find_template` reads one).
        date: the day, as "2026-11-28", for a template that writes today's (Llama 3.2, SmolLM3, gpt-oss); by default it is today, and
            token ids differ tomorrow.

    Returns:
        One Sample per prompt, in order. A last message by the assistant counts as the response.

    Raises:
        PromptError: the source is missing, malformed or empty, or a record has no prompt (the message names the record); or `date` is
            no day.
    """
    tokenizer = getattr(model, "tokenizer", model)
    if tokenizer is None:
        raise PromptError("reading prompts needs a tokenizer: wrap the model with one, or make Samples of token ids")
    options = {"enable_thinking": enable_thinking, "chat_template": chat_template}
    given = {name: value for name, value in options.items() if value is not None}
    warn_of_unread_switch(tokenizer, given, chat)
    day = None if date is None else _day(date)
    if day is not None and chat and writes_date(template := template_of(tokenizer, given)):
        given["chat_template"] = with_date(template, day)
    conversations = _conversations(source, limit, split, column, system)
    return [to_sample(conversation, tokenizer, chat=chat, template_options=given) for conversation in conversations]


def _day(text: str) -> datetime.date:
    try:
        return datetime.date.fromisoformat(text)
    except ValueError as error:
        raise PromptError(f"date must be a day such as 2026-11-28, got {text!r}") from error


def read_problems(
    source: str | Path | Iterable[str | Record],
    *,
    limit: int | None = None,
    split: str = "train",
    column: str | None = None,
    system: str | None = None,
) -> list[dict[str, Any]]:
    """Reads problems in the form that trainers take: one `{"prompt": messages, "ground_truth": text}` each, not tokenised.

    The arguments are those of `read_prompts`. A response that a record holds is left out.

    Raises:
        PromptError: as in `read_prompts`, or a problem has no ground truth to check an answer against.
    """
    problems = []
    for conversation in _conversations(source, limit, split, column, system):
        if conversation.ground_truth is None:
            raise PromptError(
                f"prompt {conversation.name} has no ground truth (reward_model.ground_truth, ground_truth or answer); training needs one"
            )
        problems.append({"prompt": [dict(message) for message in conversation.messages], "ground_truth": conversation.ground_truth})
    return problems


def _conversations(
    source: str | Path | Iterable[str | Record], limit: int | None, split: str, column: str | None, system: str | None
) -> Iterator[Conversation]:
    """The conversations of a source, one after another. Raises PromptError at its end if there was none."""
    number = -1
    for number, record in enumerate(read_records(source, split, limit)):
        yield read_conversation(record, number, column=column, system=system)
    if number < 0:
        raise PromptError(f"{source if isinstance(source, str | Path) else 'the prompt list'} holds no prompts")


def find_template(name: str) -> str:
    """The text of a chat template: a bundled one by name, or a Jinja file by path. Raises PromptError if there is neither."""
    file = bundled_template(name) or Path(name).expanduser()
    try:
        return file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise PromptError(f"no chat template {name}: give a Jinja file, or one of {', '.join(TEMPLATES)}") from error
