"""Writing a file whole or not at all."""

from __future__ import annotations

from pathlib import Path

from layerlens.errors import LayerLensError


def write_text(path: Path, text: str) -> None:
    """Writes `text` in one step, making the folder if need be. Raises LayerLensError where that can not be done."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        tmp = path.with_name(f".{path.name}.tmp")
        tmp.write_text(text, encoding="utf-8")
        tmp.replace(path)
    except OSError as error:
        raise LayerLensError(f"{path} can not be written ({error.strerror or error})") from error
