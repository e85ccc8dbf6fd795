"""A run in memory, with the manners of one on disk."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import xarray as xr


class RunMemory:
    """What `RunFolder` is on disk, for one process and nothing to come back to."""

    path = None

    def __init__(self, manifest: Mapping[str, Any]):
        self._manifest = dict(manifest)
        self._samples: dict[int, xr.Dataset] = {}

    def manifest(self) -> dict[str, Any]:
        return self._manifest

    def conclude(self, **more: Any) -> None:
        self._manifest |= more

    def has(self, index: int, tokens: int | None = None) -> bool:
        return index in self._samples and (tokens is None or self._samples[index].attrs["tokens_per_sample"] >= tokens)

    def read(self, index: int) -> xr.Dataset:
        return self._samples[index]

    def write(self, index: int, sample: xr.Dataset) -> None:
        self._samples[index] = sample

    def claim(self, batch: int) -> AbstractContextManager[bool]:
        return nullcontext(True)
