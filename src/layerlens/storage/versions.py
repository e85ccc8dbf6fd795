"""When, and with which versions of the packages, something is made."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from functools import cache
from importlib.metadata import PackageNotFoundError, version

PACKAGES = {"layerlens": "layerlens-policy", "torch": "torch", "transformers": "transformers", "numpy": "numpy", "xarray": "xarray"}
"""Packages whose versions a manifest names, and the names of their distributions."""


def now() -> str:
    """Date and time to the second, UTC, in ISO 8601."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def versions() -> Mapping[str, str]:
    """The version of each of the packages that a manifest names."""
    return {name: _version(distribution) for name, distribution in PACKAGES.items()}


@cache
def _version(distribution: str) -> str:
    try:
        return version(distribution)
    except PackageNotFoundError:
        return "unknown"
