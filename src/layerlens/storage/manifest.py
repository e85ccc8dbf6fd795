"""run.json: what was run on what, so that a folder is never filled by two configurations."""

from __future__ import annotations

import platform
from collections.abc import Mapping
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from layerlens.errors import RunError

FORMAT = 1
IDENTITY = ("format", "config", "samples", "model.fingerprint", "model.dtype")
"""The parts of a manifest that two processes must share to fill one folder (where a model lies is not one)."""


def make_manifest(model: Mapping[str, Any], config: Mapping[str, Any], samples: Mapping[str, Any], **more: Any) -> dict[str, Any]:
    """A manifest of plain JSON values. `samples` holds at least `count` and `digest`; `more` is kept but not compared."""
    return {
        "format": FORMAT,
        "model": dict(model),
        "config": dict(config),
        "samples": dict(samples),
        **more,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "versions": {
            name.removesuffix("-policy"): _version(name) for name in ("layerlens-policy", "torch", "transformers", "numpy", "xarray")
        },
        "python": platform.python_version(),
    }


def require_same(ours: Mapping[str, Any], theirs: Mapping[str, Any], folder: str) -> None:
    """Raises RunError naming what differs, and how, unless both manifests describe the same computation."""
    a, b = _flat(ours), _flat(theirs)
    different = [key for key in sorted(a.keys() | b.keys()) if key.startswith(IDENTITY) and a.get(key) != b.get(key)]
    if different:
        shown = "; ".join(f"{key} is {b.get(key)!r} there and {a.get(key)!r} now" for key in different[:3])
        raise RunError(f"{folder} holds a run of another configuration ({shown}); choose another folder, or remove that one")


def _flat(value: Any, prefix: str = "") -> dict[str, Any]:
    if isinstance(value, Mapping):
        return {k: v for key, item in value.items() for k, v in _flat(item, f"{prefix}{key}.").items()}
    return {prefix.rstrip("."): value}


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "unknown"
