"""From a record to a conversation (messages, response, ground truth), and from a conversation to token ids."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from layerlens.errors import PromptError
from layerlens.prompts.chat_template import Message, has_template, render_chat
from layerlens.prompts.records import Record
from layerlens.prompts.sample import Sample
from layerlens.prompts.tokens import plain_ids

PROMPT_COLUMNS = ("prompt", "messages", "text", "problem", "question")
"""The fields in which a prompt is looked for, in this order."""


@dataclass(frozen=True)
class Conversation:
    """What a record holds.

    Attributes:
        name: the record's id, or its number in the source from 0.
        messages: the prompt, each message with `role` and `content`.
        response: the assistant's answer to the prompt; empty if there is none.
        ground_truth: the right answer, if the record has one.
        correct: whether the response is right, if the record says so.
        rendered: whether the prompt is the very text that a model read, so that no chat template may be put around it.
    """

    name: str
    messages: list[Message]
    response: str
    ground_truth: str | None
    correct: bool | None = None
    rendered: bool = False


def read_conversation(record: Record, number: int, *, column: str | None = None, system: str | None = None) -> Conversation:
    """Reads a record, the one with this number in its source.

    The prompt is a text or a list of messages in the field `column`, by default the first field there is of `PROMPT_COLUMNS`. The
    response is the field `response`, or a last message by the assistant. `system` is put in front as a system message, in place of
    one that the record brings. The ground truth is `reward_model.ground_truth`, `ground_truth` or `answer`; the field `correct`, true
    or false, says whether the response is right.

    Raises PromptError, naming the record, if the prompt is missing, empty or neither a text nor messages.
    """
    name = str(number if record.get("id") is None else record["id"])
    messages = _messages(record, (column,) if column else PROMPT_COLUMNS, name)
    response = record.get("response") or ""
    if not isinstance(response, str):
        raise PromptError(f"prompt {name}: 'response' must be a text, got {type(response).__name__}")
    if not response and messages and messages[-1]["role"] == "assistant":
        *messages, last = messages
        response = last["content"]
    if not any(message["content"].strip() for message in messages):
        raise PromptError(f"prompt {name} is empty")
    if system is not None:
        messages = [{"role": "system", "content": system}, *(message for message in messages if message["role"] != "system")]
    rendered = bool(record.get("rendered")) and isinstance(record.get("prompt"), str) and column is None
    if rendered and system is not None:
        raise PromptError(f"prompt {name} is the very text that a model read, system message included: leave out the system message")
    correct = record.get("correct") if response else None
    if correct is not None and correct not in (True, False):
        raise PromptError(f"prompt {name}: 'correct' must be true or false, got {correct!r}")
    return Conversation(name, messages, response, _ground_truth(record), None if correct is None else bool(correct), rendered)


def to_sample(conversation: Conversation, tokenizer: Any, *, chat: bool, template_options: Mapping[str, Any]) -> Sample:
    """The conversation as token ids.

    The prompt goes through the chat template, with the marks that open the assistant's turn, if `chat` is true and there is a template;
    otherwise the contents of its messages are joined by blank lines, in the special tokens (BOS, say) that the tokenizer puts around a
    text. The response follows as it stands.

    Raises PromptError if the template refuses the messages or a text is not valid Unicode.
    """
    prompt_ids = _prompt_ids(conversation, tokenizer, chat, template_options)
    response, name = conversation.response, conversation.name
    response_ids = _token_ids(tokenizer, response, name) if response else []
    return Sample([*prompt_ids, *response_ids], len(prompt_ids), name, conversation.ground_truth, correct=conversation.correct)


def _messages(record: Record, columns: Iterable[str], name: str) -> list[Message]:
    column = next((column for column in columns if record.get(column) is not None), None)
    if column is None:
        raise PromptError(f"prompt {name} has none of the fields {', '.join(columns)}; it has {', '.join(map(str, record)) or 'none'}")
    prompt = record[column]
    if isinstance(prompt, str):
        return [{"role": "user", "content": prompt}]
    messages = list(prompt) if isinstance(prompt, Iterable) else [prompt]
    if not all(isinstance(m, Mapping) and isinstance(m.get("content"), str) and "role" in m for m in messages):
        raise PromptError(f"prompt {name}: {column!r} must be a text or a list of messages with role and content")
    return messages


def _prompt_ids(conversation: Conversation, tokenizer: Any, chat: bool, template_options: Mapping[str, Any]) -> list[int]:
    messages, name = conversation.messages, conversation.name
    if conversation.rendered:
        return plain_ids(tokenizer, _valid(messages[-1]["content"], name))
    if chat and has_template(tokenizer, template_options):
        text = render_chat(messages, tokenizer, template_options, name)
        return _token_ids(tokenizer, text, name)  # the template has written BOS
    return plain_ids(tokenizer, _valid("\n\n".join(message["content"] for message in messages), name))


def _token_ids(tokenizer: Any, text: str, name: str) -> list[int]:
    return tokenizer(_valid(text, name), add_special_tokens=False)["input_ids"]  # type: ignore[no-any-return]


def _valid(text: str, name: str) -> str:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise PromptError(f"prompt {name}: not valid Unicode ({error.reason} at character {error.start})") from error
    return text


def _ground_truth(record: Record) -> str | None:
    reward = record.get("reward_model")
    truth = reward.get("ground_truth") if isinstance(reward, Mapping) else record.get("ground_truth", record.get("answer"))
    return None if truth is None else str(truth)
