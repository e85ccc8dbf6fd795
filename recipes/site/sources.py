"""Which file of the repository is which page of the site, and links between them.

Files are written as paths from the root of the repository, pages as paths from the root of the site's sources.
"""

from __future__ import annotations

import posixpath
import re
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).parents[2]

RENAMED = {"README.md": "index.md", "CONTRIBUTING.md": "contributing.md", "CHANGELOG.md": "changelog.md"}
COPIED = {".png", ".svg", ".json", ".csv"}
"""Endings of files that the site holds as they are."""

_FENCE = re.compile(r"^(`{3,}|~{3,}).*?^\1[ \t]*$", re.M | re.S)
_LINK = re.compile(r"(\]\()([^)\s]+)(\))")


def page_of(file: str) -> str:
    """The page of the site that shows a file or folder of the repository."""
    if file in RENAMED:
        return RENAMED[file]
    if file.startswith("docs/"):
        return file.removeprefix("docs/")
    path = Path(file)
    if (ROOT / file).is_dir():
        return page_of(f"{file}/README.md") if (ROOT / file / "README.md").is_file() else f"source/{file}/index.md"
    if path.suffix == ".md":
        return str(path.with_name("index.md" if path.name == "README.md" else path.name))
    if path.suffix == ".ipynb":
        return str(path.with_suffix(".md"))
    return file if path.suffix in COPIED else f"source/{file}.md"


def map_links(text: str, change: Callable[[str], str]) -> str:
    """The text with every link and image of its running text changed; what stands in a code block is none."""

    def link(match: re.Match[str]) -> str:
        return match[1] + change(match[2]) + match[3]

    parts: list[str] = []
    end = 0
    for fence in _FENCE.finditer(text):
        parts += [_LINK.sub(link, text[end : fence.start()]), fence[0]]
        end = fence.end()
    return "".join([*parts, _LINK.sub(link, text[end:])])


def target_of(link: str, file: str) -> str | None:
    """The file that a link in `file` leads to; None if it leads out of the repository or stays in the file."""
    path = link.partition("#")[0]
    if not path or re.match(r"[a-z]+:", link):
        return None
    return posixpath.normpath(posixpath.join(posixpath.dirname(file), path))


def linked_files(text: str, file: str) -> set[str]:
    """The files of the repository to which a file's text links."""
    found: set[str] = set()

    def note(link: str) -> str:
        if (target := target_of(link, file)) is not None:
            found.add(target)
        return link

    map_links(text, note)
    return found


def as_site_links(text: str, file: str) -> str:
    """The text of `file` with its links leading to pages of the site in place of files of the repository."""
    here = posixpath.dirname(page_of(file)) or "."

    def site_link(link: str) -> str:
        target = target_of(link, file)
        if target is None:
            return link
        hash_, heading = link.partition("#")[1:]
        return posixpath.relpath(page_of(target), here) + hash_ + heading

    return map_links(text, site_link)
