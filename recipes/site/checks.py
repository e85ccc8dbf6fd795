"""What must hold of the built site: nothing from outside, no formula that could not be drawn, no list that ran into its paragraph."""

from __future__ import annotations

import re
from pathlib import Path

_FETCHED = re.compile(r"""<(?:script|img|iframe|source)\b[^>]*?\bsrc=["']?((?:https?:)?//[^"'\s>]+)""")
_LINKED = re.compile(r"""<link\b[^>]*?\bhref=["']?((?:https?:)?//[^"'\s>]+)""")
_STYLED = re.compile(r"""(?:@import\s+|url\()["']?((?:https?:)?//[^"')\s]+)""")
_RUN_IN = re.compile(r"<p>(?:[^<]|<(?!/p>))*?\n(?:[-*]|\d+\.) ", re.S)


def faults(site: Path) -> list[str]:
    """What is wrong with the built site, a line each: empty if nothing is."""
    found = []
    for page in sorted(site.rglob("*.html")):
        text = page.read_text(encoding="utf-8")
        name = page.relative_to(site)
        fetched = [*_FETCHED.findall(text), *_LINKED.findall(text), *_STYLED.findall(text)]
        found += [f"{name} fetches {address}" for address in fetched]
        found += [f"{name}: a formula that was not drawn: {part}" for part in re.findall(r'class="arithmatex".{0,80}|<merror.{0,80}', text)]
        found += [f"{name}: a list that ran into its paragraph: {part[-80:]!r}" for part in _RUN_IN.findall(text)]
    for style in sorted(site.rglob("*.css")):
        found += [f"{style.relative_to(site)} fetches {address}" for address in _STYLED.findall(style.read_text(encoding="utf-8"))]
    return found
