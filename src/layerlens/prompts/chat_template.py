"""Chat templates as they are in the wild: what they refuse, leave out, or do not know."""

from __future__ import annotations

import re
import signal
import threading
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import date
from typing import Any

from layerlens.errors import PromptError, message_of

Message = Mapping[str, Any]
SWITCH = "enable_thinking"
"""The variable by which most templates turn thinking on and off."""
NOW = re.compile(r"strftime_now\(\s*(['\"])(.*?)\1\s*\)")
"""How a template asks for today's date, in a form of strftime's."""
SECONDS = 20.0
"""The longest that a chat template may take for one prompt; templates take milliseconds."""


class _TookTooLong(BaseException):
    """Not an Exception, so that nothing between the template and `limited_time` takes it for a refusal of the template's."""


@contextmanager
def limited_time(name: str) -> Iterator[None]:
    """Inside, chat templates may run for `SECONDS`; then a PromptError names the prompt.

    A template is a program, and its loops can be stopped by a signal alone. Without signals (in a thread, on Windows, or if an alarm
    is set already) there is no limit.
    """
    if (
        threading.current_thread() is not threading.main_thread()
        or not hasattr(signal, "setitimer")
        or signal.getitimer(signal.ITIMER_REAL)[0]
    ):
        yield
        return

    def stop(*_: object) -> None:
        raise _TookTooLong

    before = signal.signal(signal.SIGALRM, stop)
    try:
        signal.setitimer(signal.ITIMER_REAL, SECONDS)
        yield
    except _TookTooLong:
        raise PromptError(
            f"prompt {name}: the chat template did not end within {SECONDS:g} s; give another template, or pass chat=False (--no-chat)"
        ) from None
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def has_template(tokenizer: Any, options: Mapping[str, Any]) -> bool:
    """Whether the tokenizer has a chat template, or the options bring one."""
    return bool(getattr(tokenizer, "chat_template", None) or options.get("chat_template"))


def render_chat(messages: Sequence[Message], tokenizer: Any, options: Mapping[str, Any], name: str) -> str:
    """The messages as text, with the marks that open the assistant's turn.

    `options` are variables of the template, and `chat_template` in place of the tokenizer's own. Raises PromptError, naming the
    prompt, if the template refuses the messages or does not end.
    """
    try:
        with limited_time(name):
            return _render(accepted_messages(messages, tokenizer, options), tokenizer, options)
    except PromptError:
        raise
    except Exception as error:  # a template is a program, and many refuse roles or orders by raising
        raise PromptError(
            f"prompt {name}: the chat template refuses it ({message_of(error, None)}); "
            "give another template, or pass chat=False (--no-chat)"
        ) from error


def accepted_messages(messages: Sequence[Message], tokenizer: Any, options: Mapping[str, Any]) -> list[Message]:
    """The messages in a form that the template takes.

    System messages that the template refuses or leaves out are put in front of the first user message, with a warning. Contents are
    handed over as lists of parts if the template, as some of multimodal models, finds no text in them otherwise. Messages that the
    template refuses in every form are given back as they are.
    """
    spoken = [message for message in messages if message["role"] != "system"]
    if len(spoken) < len(messages) and any(message["role"] == "user" for message in spoken):
        reason = _why_no_system(messages, spoken, tokenizer, options)
        if reason:
            warnings.warn(
                f"the chat template takes no system message ({reason}); its text is put in front of the first user message", stacklevel=2
            )
            messages = _merged(messages)
    parts = [{**message, "content": [{"type": "text", "text": message["content"]}]} for message in messages]
    if not _shows(messages, messages, tokenizer, options) and _shows(messages, parts, tokenizer, options):
        return list(parts)
    return list(messages)


def writes_date(template: str) -> bool:
    """Whether a chat template writes today's date, in a form that it names. One that makes up the form as it runs is not seen."""
    return NOW.search(template) is not None


def with_date(template: str, day: date) -> str:
    """A chat template that writes `day` where it would write today's date: token ids of a prompt are then the same on every day."""
    said = {form: day.strftime(form) for _, form in NOW.findall(template)}
    # the empty expression keeps the macro's end from taking away a line break that the template begins with
    return f"{{%- macro strftime_now(form) -%}}{{{{ {said!r}[form] }}}}{{%- endmacro -%}}{{{{ '' }}}}{template}"


def template_of(tokenizer: Any, options: Mapping[str, Any]) -> str:
    """The chat template that is used: of the options, or of the tokenizer, of several its default; empty if there is none."""
    template = options.get("chat_template") or getattr(tokenizer, "chat_template", None) or ""
    return template.get("default", "") if isinstance(template, dict) else str(template)


def warn_of_unread_switch(tokenizer: Any, options: Mapping[str, Any], chat: bool) -> None:
    """Warns if `enable_thinking` is among the options and no template reads it, so that it changes nothing."""
    if SWITCH not in options:
        return
    if not (chat and has_template(tokenizer, options)):
        reason = "no chat template is used"
    elif SWITCH not in str(options.get("chat_template") or tokenizer.chat_template):  # the latter may be several, by name
        reason = "the chat template does not read it"
    else:
        return
    warnings.warn(f"{SWITCH} (--thinking, --no-thinking) changes nothing here: {reason}", stacklevel=2)


def _render(messages: Sequence[Message], tokenizer: Any, options: Mapping[str, Any]) -> str:
    return tokenizer.apply_chat_template(list(messages), tokenize=False, add_generation_prompt=True, **options)  # type: ignore[no-any-return]


def _why_no_system(messages: Sequence[Message], spoken: Sequence[Message], tokenizer: Any, options: Mapping[str, Any]) -> str | None:
    """Why the template does not take the system messages; None if it takes them, or refuses the others as well."""
    try:
        without = _render(spoken, tokenizer, options)
    except Exception:  # see render_chat
        return None
    try:
        return "it leaves it out" if _render(messages, tokenizer, options) == without else None
    except Exception as error:
        return message_of(error, None)


def _merged(messages: Sequence[Message]) -> list[Message]:
    system = [message["content"] for message in messages if message["role"] == "system"]
    spoken = [dict(message) for message in messages if message["role"] != "system"]
    first = next(message for message in spoken if message["role"] == "user")
    first["content"] = "\n\n".join([*system, first["content"]])
    return list(spoken)


def _shows(messages: Sequence[Message], form: Sequence[Message], tokenizer: Any, options: Mapping[str, Any]) -> bool:
    """Whether the template, given the messages in some form, writes the last message's text."""
    try:
        return messages[-1]["content"].strip() in _render(form, tokenizer, options)
    except Exception:  # see render_chat
        return False
