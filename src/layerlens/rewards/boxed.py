r"""Is the answer right: the last `\boxed{...}` of a text against the exact answer."""

from __future__ import annotations

import re

_BOX = r"\boxed{"
_INTEGER = re.compile(r"([+-]?)([0-9]+)", re.ASCII)
_THOUSANDS = re.compile(r"[+-]?[0-9]{1,3}(,[0-9]{3})+", re.ASCII)


def last_boxed(text: str) -> str | None:
    r"""What stands in the last `\boxed{...}`, braces balanced; None where there is none or it never closes."""
    start = text.rfind(_BOX)
    if start < 0:
        return None
    depth, begin = 1, start + len(_BOX)
    for end in range(begin, len(text)):
        depth += (text[end] == "{") - (text[end] == "}")
        if depth == 0:
            return text[begin:end]
    return None


def verify(text: str, ground_truth: str | int) -> bool:
    r"""True where the last `\boxed{...}` of `text` holds exactly `ground_truth`; never raises on any string.

    Integers are compared as integers: surrounding spaces or dollar signs, a leading `+` or zeros, and
    well-placed thousands commas do not matter. Anything else must be the same text.
    """
    found = last_boxed(text)
    return found is not None and _normal(found) == _normal(str(ground_truth))


def _normal(answer: str) -> str:
    answer = answer.strip().strip("$").strip()
    if _THOUSANDS.fullmatch(answer):
        answer = answer.replace(",", "")
    match = _INTEGER.fullmatch(answer)
    if match is None:
        return answer
    sign, digits = match.group(1), match.group(2).lstrip("0") or "0"
    return f"-{digits}" if sign == "-" and digits != "0" else digits
