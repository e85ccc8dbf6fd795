"""Where the files that come with layerlens are: inside an installed wheel, or in the `data` folder of a checkout."""

from __future__ import annotations

from pathlib import Path

_PACKAGE = Path(__file__).resolve().parents[1]

MODELS = ("tiny-qwen3", "tiny-llama")
TEMPLATES = ("octothinker",)


def data_folder() -> Path:
    """The folder with `models/` and `prompts/`."""
    installed = _PACKAGE / "data"
    return installed if installed.is_dir() else _PACKAGE.parents[1] / "data"


def bundled_model(name: str) -> Path | None:
    """The folder of a bundled model, or None if `name` is not one."""
    return data_folder() / "models" / name if name in MODELS else None


def bundled_prompts() -> Path:
    """Held-out arithmetic problems, one JSON object per line."""
    return data_folder() / "prompts" / "arithmetic.jsonl"


def bundled_template(name: str) -> Path | None:
    """The file of a bundled chat template, or None if `name` is not one."""
    return _PACKAGE / "prompts" / "templates" / f"{name}.jinja" if name in TEMPLATES else None
