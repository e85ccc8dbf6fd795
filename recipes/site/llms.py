"""`llms.txt`: the site for readers that are programs, as https://llmstxt.org describes it."""

from __future__ import annotations

import re


def summary_of(markdown: str) -> str:
    """The first sentence of a page's running text."""
    paragraphs = re.split(r"\n\s*\n", re.sub(r"^---\n.*?\n---\n", "", markdown, flags=re.S))
    running = (part.strip() for part in paragraphs if not part.lstrip().startswith(("#", "|", "!", "<", "```", "-", ">", ":::")))
    text = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", next(running, "")).replace("**", "").replace("`", "")
    return re.split(r"(?<=[.?!])\s", " ".join(text.split()))[0]


def llms_txt(name: str, description: str, sections: dict[str, list[tuple[str, str, str]]]) -> str:
    """The file's text. `sections` holds for each heading the title, address and summary of its pages."""
    parts = [f"# {name}", f"> {description}"]
    for heading, pages in sections.items():
        parts += [f"## {heading}", "\n".join(f"- [{title}]({address}): {summary}" for title, address, summary in pages)]
    return "\n\n".join(parts) + "\n"
