"""Chat templates in the wild: those that refuse, ignore or do not know what they are given."""

from __future__ import annotations

import warnings
from datetime import datetime
from typing import Any

import pytest

import layerlens as ll
from layerlens.errors import PromptError
from layerlens.prompts.chat_template import accepted_messages
from tests.support.tiny_models import byte_tokenizer

CHAT = "{% for m in messages %}[{{ m['role'] }}]{{ m['content'] }}{% endfor %}{% if add_generation_prompt %}[assistant]{% endif %}"
THINKING = CHAT + "{% if enable_thinking is defined and not enable_thinking %}<think></think>{% endif %}"
GEMMA = "{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role\nnot supported') }}{% endif %}" + CHAT
FORGETFUL = "{% for m in messages if m['role'] != 'system' %}[{{ m['role'] }}]{{ m['content'] }}{% endfor %}"
MULTIMODAL = (
    "{% for m in messages %}[{{ m['role'] }}]{% for part in m['content'] %}{% if part['type'] == 'text' %}{{ part['text'] }}"
    "{% endif %}{% endfor %}{% endfor %}"
)
TWO_TURNS = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "Hi"},
    {"role": "assistant", "content": "Yes?"},
    {"role": "user", "content": "Why?"},
]


def text_of(source: Any, template: str | None, **options: Any) -> str:
    tokenizer = byte_tokenizer(template)
    [sample] = ll.read_prompts([source], tokenizer, **options)
    return tokenizer.decode(sample.token_ids)


def test_tokenizer_without_template_gets_the_plain_text() -> None:
    assert text_of("2 + 2 =", None) == "2 + 2 ="
    assert text_of({"messages": TWO_TURNS}, None) == "Be brief.\n\nHi\n\nYes?\n\nWhy?"
    assert text_of("2 + 2 =", None, system="Count.") == "Count.\n\n2 + 2 ="
    assert text_of("2 + 2 =", CHAT, chat=False) == "2 + 2 ="
    assert text_of("2 + 2 =", None, chat_template=CHAT) == "[user]2 + 2 =[assistant]"


def test_template_that_takes_everything_gets_it_without_a_warning() -> None:
    assert text_of({"messages": TWO_TURNS}, CHAT) == "[system]Be brief.[user]Hi[assistant]Yes?[user]Why?[assistant]"
    assert text_of("Hi", THINKING, enable_thinking=False) == "[user]Hi[assistant]<think></think>"
    assert text_of("Hi", THINKING, enable_thinking=True) == text_of("Hi", THINKING) == "[user]Hi[assistant]"


@pytest.mark.parametrize(("template", "chat"), [(CHAT, True), (THINKING, False), (None, True)])
@pytest.mark.parametrize("thinking", [True, False])
def test_thinking_switch_that_changes_nothing_is_told(template: str | None, chat: bool, thinking: bool) -> None:
    reason = "the chat template does not read it" if template and chat else "no chat template is used"
    with pytest.warns(UserWarning, match=rf"enable_thinking \(--thinking, --no-thinking\) changes nothing here: {reason}"):
        told = text_of("Hi", template, chat=chat, enable_thinking=thinking)
    assert told == text_of("Hi", template, chat=chat)


@pytest.mark.parametrize(
    ("template", "reason"), [(GEMMA, "System role not supported"), (FORGETFUL, "it leaves it out")], ids=["refuses", "leaves out"]
)
def test_system_message_that_a_template_does_not_take_goes_into_the_user_turn(template: str, reason: str) -> None:
    with pytest.warns(UserWarning, match=rf"takes no system message \({reason}\); its text is put in front of the first user message"):
        told = text_of({"messages": TWO_TURNS}, template)
    assert told.startswith("[user]Be brief.\n\nHi[assistant]Yes?[user]Why?")
    with pytest.warns(UserWarning, match="takes no system message"):
        assert text_of("Hi", template, system="Be brief.").startswith("[user]Be brief.\n\nHi")
    assert TWO_TURNS[1]["content"] == "Hi", "the caller's messages stay as they are"


def test_template_of_a_multimodal_model_gets_lists_of_parts() -> None:
    assert text_of({"messages": TWO_TURNS}, MULTIMODAL) == "[system]Be brief.[user]Hi[assistant]Yes?[user]Why?"


@pytest.mark.parametrize(
    "template", ["{{ raise_exception('no\n\nthanks') }}", "{{ missing.attribute }}", "{% if %}", "{{ messages[7]['content'] }}"]
)
def test_template_that_raises_is_one_line_with_the_way_out(template: str) -> None:
    with pytest.raises(
        PromptError, match=r"prompt 0: the chat template refuses it \(.+\); give another template, or pass chat=False"
    ) as told:
        text_of({"messages": TWO_TURNS}, template)
    assert "\n" not in str(told.value)
    assert text_of("Hi", template, chat=False) == "Hi"


def test_accepted_messages_are_those_that_were_given_if_the_template_refuses_all() -> None:
    tokenizer = byte_tokenizer("{{ raise_exception('no') }}")
    assert accepted_messages(TWO_TURNS, tokenizer, {}) == TWO_TURNS
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert accepted_messages(TWO_TURNS[:1], byte_tokenizer(GEMMA), {}) == TWO_TURNS[:1], "no user message to put it in"


def test_named_templates_without_a_default_are_refused_in_one_line() -> None:
    tokenizer = byte_tokenizer(None)
    tokenizer.chat_template = {"tool_use": CHAT, "rag": THINKING}
    for options in ({}, {"enable_thinking": True}):
        with pytest.raises(PromptError, match="the chat template refuses it") as told:
            ll.read_prompts(["Hi"], tokenizer, **options)
        assert "\n" not in str(told.value)
    assert ll.read_prompts(["Hi"], tokenizer, chat_template=CHAT)[0].token_ids == tuple(tokenizer("[user]Hi[assistant]")["input_ids"])


DATED = (
    "\n{% macro day() %}{{ strftime_now('%d %b %Y') }}{% endmacro %}"
    '{% if strftime_now is defined %}{{ day() }}, {{ strftime_now("%A") }}{% endif %}'
)


def test_a_template_that_writes_todays_date_writes_the_day_that_it_is_given() -> None:
    with_their_clock = text_of("Hi", DATED + CHAT)
    assert text_of("Hi", DATED + CHAT, date=datetime.now().date().isoformat()) == with_their_clock, "all else is as it was"
    assert text_of("Hi", DATED + CHAT, date="2026-03-07") == "\n07 Mar 2026, Saturday[user]Hi[assistant]"
    assert text_of("Hi", CHAT, date="2026-03-07") == text_of("Hi", CHAT)
    assert text_of("Hi", None, date="2026-03-07") == "Hi"
    several: Any = {"tools": DATED, "rag": DATED}
    with pytest.raises(PromptError, match="the chat template refuses it"):
        text_of("Hi", several, date="2026-03-07")
    assert text_of("Hi", several | {"default": CHAT}, date="2026-03-07") == text_of("Hi", CHAT)
    with pytest.raises(PromptError, match="date must be a day such as 2026-11-28, got '7 March'"):
        text_of("Hi", CHAT, date="7 March")
