"""Draws the gallery: runs the code of `docs/gallery.md` from top to bottom and keeps each figure with the numbers that it draws.

`make gallery`. Every section of the page that ends in an image has a block of code before it, which leaves the figure in `drawn`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from recipes.site.sources import ROOT

PAGE = ROOT / "docs" / "gallery.md"
DPI = 110

_BLOCK = re.compile(r"^```python\n(.*?)^```$(?:\s*!\[[^\]]*\]\(\.\./(figures/gallery/[\w-]+\.png)\))?", re.M | re.S)


def blocks(text: str) -> Iterator[tuple[str, str | None]]:
    """Each block of code, with the image that follows it, as a path from the root of the repository."""
    for match in _BLOCK.finditer(text):
        yield match[1], match[2]


def draw_gallery(text: str, root: Path) -> list[Path]:
    """Runs the page's code, and writes each figure and its numbers under `root`; the figures' paths."""
    from layerlens.plots import data, save

    names: dict[str, Any] = {}
    written = []
    for number, (code, image) in enumerate(blocks(text)):
        names.pop("drawn", None)
        exec(compile(code, f"block {number} of the gallery", "exec"), names)
        if image is None:
            continue
        path = root / image
        path.parent.mkdir(parents=True, exist_ok=True)
        save(names["drawn"], path, dpi=DPI)
        numbers = data(names["drawn"])
        if len(numbers):
            numbers.dropna(axis="columns", how="all").to_csv(path.with_suffix(".csv"), index=False, float_format="%.4g")
        written.append(path)
    return written


if __name__ == "__main__":
    for figure in draw_gallery(PAGE.read_text(encoding="utf-8"), ROOT):
        print(figure.relative_to(ROOT))
