"""Lists as GitHub reads them: an item may follow a line of text without an empty line between (an extension of Python-Markdown)."""

from __future__ import annotations

import re
from typing import Any

from markdown import Markdown
from markdown.extensions import Extension
from markdown.preprocessors import Preprocessor

AFTER_FENCES = 20
"""Below the priority at which code blocks are put aside, so that their lines are not seen."""

_ITEM = re.compile(r"(?:[-*+]|\d+\.) ")


class _EmptyLineBeforeLists(Preprocessor):
    def run(self, lines: list[str]) -> list[str]:
        done: list[str] = []
        for line in lines:
            before = done[-1] if done else ""
            if _ITEM.match(line) and re.match(r"\S", before) and not _ITEM.match(before):
                done.append("")
            done.append(line)
        return done


class Lists(Extension):
    def extendMarkdown(self, md: Markdown) -> None:
        md.preprocessors.register(_EmptyLineBeforeLists(md), "empty_line_before_lists", AFTER_FENCES)


def makeExtension(**options: Any) -> Lists:
    return Lists(**options)
