"""Public data sets that do not come with the repository."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

FOLDER = Path(os.environ.get("LAYERLENS_DATA") or Path(__file__).parents[3] / "shared" / "data")


def public_data(name: str) -> Path:
    """A file of the folder that LAYERLENS_DATA names, by default `../shared/data` beside the checkout; skips the test if it is missing."""
    file = FOLDER / name
    if not file.is_file():
        pytest.skip(f"{file} is missing: set LAYERLENS_DATA to the folder of the public data sets")
    return file
