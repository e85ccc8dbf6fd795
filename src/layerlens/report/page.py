"""The page: one file with its data, its style, its scripts and the charting library inside, which loads nothing."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from layerlens.errors import LayerLensError
from layerlens.report.arrays import compressed

ASSETS = Path(__file__).parent / "assets"
SCRIPTS = ("base", "arrays", "colours", "table", "charts", "overview", "pins", "text", "grid", "training", "main")
"""Files of the page's own program, in the order in which they run."""


def page(data: dict[str, Any], *, live: bool = False) -> str:
    """The whole page as HTML.

    Args:
        data: what `layerlens.report.report_data` gives.
        live: whether the page comes from `layerlens watch` and asks it for news.

    Raises:
        LayerLensError: plotly is not installed.
    """
    library, banner, carried = plotly()
    scripts = [(ASSETS / f"{name}.js").read_text(encoding="utf-8") for name in SCRIPTS]
    allowed = " ".join(f"'sha256-{_digest(text)}'" for text in [*scripts, library])
    policy = [
        "default-src 'none'",
        f"script-src {allowed}",
        "style-src 'unsafe-inline'",  # the charting library sets styles of its own
        "img-src data: blob:",  # figures that are saved
        "base-uri 'none'",
        "form-action 'none'",
        *(["connect-src 'self'"] if live else []),
    ]
    filled = {
        "policy": "; ".join(policy),
        "style": (ASSETS / "report.css").read_text(encoding="utf-8"),
        "banner": _as_text(banner),
        "live": "live" if live else "",
        "data": _as_data({**data, "live": live, "library": banner.splitlines()[0]}),
        "library": carried,
        "scripts": "\n".join(f"<script>{text}</script>" for text in scripts),
    }
    template = (ASSETS / "page.html").read_text(encoding="utf-8")
    return re.sub(r"\{\{(\w+)\}\}", lambda found: filled[found[1]], template)


@cache
def plotly() -> tuple[str, str, str]:
    """The charting library's program; its name, version, copyright and licence as it states them; and the program compressed.

    Raises LayerLensError if plotly is not installed.
    """
    found = find_spec("plotly")
    places = (found.submodule_search_locations if found else None) or []
    file = next((path for place in places if (path := Path(place) / "package_data" / "plotly.min.js").is_file()), None)
    if file is None:
        raise LayerLensError("a report needs plotly, whose charts it carries: pip install 'layerlens-policy[report]'")
    program = file.read_text(encoding="utf-8")
    comment = re.match(r"\s*/\*\*?(.*?)\*/", program, re.DOTALL)
    said = "\n".join(line.strip(" *") for line in (comment[1] if comment else "plotly.js").splitlines())
    return program, said.strip(), compressed(program.encode("utf-8"))


def _as_data(data: dict[str, Any]) -> str:
    """JSON that no tag can end: every character that HTML reads is written as an escape."""
    text = json.dumps(data, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    return (
        text.replace("&", "\\u0026")
        .replace("<", "\\u003c")
        .replace(">", "\\u003e")
        .replace("\u2028", "\\u2028")
        .replace("\u2029", "\\u2029")
    )


def _as_text(text: str) -> str:
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def _digest(script: str) -> str:
    return base64.b64encode(hashlib.sha256(script.encode("utf-8")).digest()).decode("ascii")
