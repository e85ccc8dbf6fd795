"""A notebook as a page: its texts, its code, and what the committed outputs show."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any


def notebook_page(path: Path) -> tuple[str, dict[str, bytes]]:
    """The page in Markdown, and the figures that it shows by their file names."""
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    figures: dict[str, bytes] = {}
    parts = []
    for cell in cells:
        source = "".join(cell["source"])
        if cell["cell_type"] == "markdown":
            parts.append(source)
            continue
        parts.append(f"```python\n{source}\n```")
        parts += [_shown(output, figures, path.stem) for output in cell["outputs"]]
    return "\n\n".join(part for part in parts if part) + "\n", figures


def _shown(output: dict[str, Any], figures: dict[str, bytes], stem: str) -> str:
    """One output in Markdown. A figure is put aside under a name of its own."""
    data = output.get("data", {})
    if "image/png" in data:
        name = f"{stem}-{len(figures) + 1}.png"
        figures[name] = base64.b64decode("".join(data["image/png"]))
        return f"![Figure {len(figures)}]({name})"
    if "text/html" in data:
        lines = "".join(data["text/html"]).splitlines()
        return '<div class="output">\n' + "\n".join(line.strip() for line in lines if line.strip()) + "\n</div>"
    text = "".join(output["text"] if output["output_type"] == "stream" else data.get("text/plain", ""))
    return f"```text\n{text.rstrip()}\n```" if text.strip() else ""
