"""Formulas as MathML, made when the site is built: browsers draw it without a script or a font from elsewhere."""

from __future__ import annotations

import html
import re

from latex2mathml.converter import convert

_FORMULA = re.compile(r'<(span|div) class="arithmatex">\\([(\[])(.*?)\\[)\]]</\1>', re.S)

_LIMITS = re.compile(r"<(msub|msubsup)>(<mo>&#x02211;</mo>(?:<mrow>.*?</mrow>|<mi>.*?</mi>)*?)</\1>")
"""A sum with its limits, which latex2mathml sets beside the sign in displayed formulas too."""


def draw_formulas(page: str) -> str:
    """The HTML of a page with every formula that arithmatex marked turned into MathML."""
    return _FORMULA.sub(_mathml, page)


def _mathml(match: re.Match[str]) -> str:
    tex = html.unescape(match[3]).strip()
    block = match[2] == "["
    drawn = convert(tex, display="block" if block else "inline")
    if block:
        drawn = _LIMITS.sub(_under, drawn)
    return f'<{match[1]} class="formula">{drawn}</{match[1]}>'


def _under(match: re.Match[str]) -> str:
    tag = {"msub": "munder", "msubsup": "munderover"}[match[1]]
    return f"<{tag}>{match[2]}</{tag}>"
