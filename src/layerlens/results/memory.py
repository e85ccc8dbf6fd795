"""A run in memory, with the interface of one on disk."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace

import xarray as xr

from layerlens.storage.manifest import RunManifest, Stopping


class RunMemory:
    """What `RunFolder` is on disk, for one process alone; nothing is left when it ends."""

    path = None

    def __init__(self, manifest: RunManifest):
        self._manifest = manifest
        self._samples: dict[int, xr.Dataset] = {}

    def manifest(self) -> RunManifest:
        return self._manifest

    def conclude(self, stopping: Stopping) -> None:
        self._manifest = replace(self._manifest, stopping=stopping)

    def has(self, index: int, tokens: int | None = None) -> bool:
        return index in self._samples and (tokens is None or self._samples[index].attrs["tokens_per_sample"] >= tokens)

    def read(self, index: int) -> xr.Dataset:
        return self._samples[index]

    def write(self, index: int, sample: xr.Dataset) -> None:
        self._samples[index] = sample

    def claim(self, name: str) -> AbstractContextManager[bool]:
        return nullcontext(True)
