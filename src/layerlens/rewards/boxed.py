r"""The last `\boxed{...}` of a text, and whether it holds the exact answer."""

from __future__ import annotations

import re

_BOX = r"\boxed{"
_INTEGER = re.compile(r"([+-]?)([0-9]+)", re.ASCII)
_WITH_THOUSANDS_COMMAS = re.compile(r"[+-]?[0-9]{1,3}(,[0-9]{3})+", re.ASCII)


def last_boxed(text: str) -> str | None:
    r"""The content of the last `\boxed{...}` of a text, braces balanced; None if there is no box or the last one never closes."""
    start = text.rfind(_BOX)
    if start < 0:
        return None
    depth, begin = 1, start + len(_BOX)
    for end in range(begin, len(text)):
        depth += (text[end] == "{") - (text[end] == "}")
        if depth == 0:
            return text[begin:end]
    return None


def boxed_result(text: str) -> str | None:
    r"""The content of the last `\boxed{...}` as `verify` compares it: integers in one form, other texts as they are; None without a box."""
    answer = last_boxed(text)
    return None if answer is None else _normal_form(answer)


def verify(text: str, ground_truth: str | int) -> bool:
    r"""Whether the last `\boxed{...}` of `text` holds exactly `ground_truth`; never raises, whatever the text.

    Two integers are compared as integers: surrounding spaces or dollar signs, a leading `+`, leading zeros and well-placed
    thousands commas make no difference. Any other answer must be the same text as the ground truth.
    """
    return boxed_result(text) == _normal_form(str(ground_truth))


def _normal_form(answer: str) -> str:
    answer = answer.strip().strip("$").strip()
    if _WITH_THOUSANDS_COMMAS.fullmatch(answer):
        answer = answer.replace(",", "")
    match = _INTEGER.fullmatch(answer)
    if match is None:
        return answer
    sign, digits = match.group(1), match.group(2).lstrip("0") or "0"
    return f"-{digits}" if sign == "-" and digits != "0" else digits
