"""The texts of the repository as a reader sees them: which files there are, their headings, links and tables."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

from markdown_it import MarkdownIt
from markdown_it.token import Token

ROOT = Path(__file__).parents[2]
TEXTS = {".py", ".md", ".toml", ".yaml", ".yml", ".ipynb", ".cff", ".cpp", ".jinja", ".txt"}

Table = list[dict[str, str]]
"""Rows of a table, each from column name to the cell's source."""


def repository_texts(root: Path = ROOT) -> list[Path]:
    """Every text file that git tracks, or would track once added; without a git checkout, as in an sdist, every text file in sight."""
    files = (root / name for name in (_names_in_git(root) if (root / ".git").exists() else _names_in_sight(root)))
    return [file for file in files if file.is_file() and (file.suffix in TEXTS or file.name == "Makefile")]


def _names_in_git(root: Path) -> list[str]:
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"]
    listed = subprocess.run(command, cwd=root, check=True, capture_output=True, text=True).stdout.split("\0")
    return [name for name in dict.fromkeys(listed) if name]


def _names_in_sight(root: Path) -> list[str]:
    """Names of all files but those that are hidden, or in a hidden folder."""
    names = (path.relative_to(root) for path in sorted(root.rglob("*")))
    return [str(name) for name in names if not any(part.startswith(".") for part in name.parts)]


def inline_tokens(text: str) -> list[Token]:
    """The running texts of a page (paragraphs, headings, cells), each parsed; code blocks are left out."""
    return [token for token in MarkdownIt("commonmark").enable("table").parse(text) if token.type == "inline"]


def links(text: str) -> list[str]:
    """Where the links and images of a page lead."""
    found = (child.attrs.get("href") or child.attrs.get("src") for token in inline_tokens(text) for child in token.children or ())
    return [str(target) for target in found if target is not None]


def anchors(text: str) -> set[str]:
    """What a link can put behind `#` to reach a heading, as GitHub makes it of the heading's text."""
    tokens = MarkdownIt("commonmark").parse(text)
    headings = [tokens[place + 1] for place, token in enumerate(tokens) if token.type == "heading_open"]
    plain = ("".join(child.content for child in heading.children or ()) for heading in headings)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in plain}


def code_blocks(text: str, language: str) -> list[str]:
    """The fenced code blocks in a language."""
    return [token.content for token in MarkdownIt("commonmark").parse(text) if token.type == "fence" and token.info == language]


def tables(text: str) -> list[Table]:
    """The tables of a page. A row with more or fewer cells than its header is an AssertionError."""
    found: list[Table] = []
    for block in re.findall(r"(?:^\|.*\n)+", text, re.M):
        header, _, *rows = [[cell.strip() for cell in line.strip()[1:-1].split("|")] for line in block.splitlines()]
        for row in rows:
            assert len(row) == len(header), f"{len(row)} cells under {header}: {row}"
        found.append([dict(zip(header, row, strict=True)) for row in rows])
    return found
