"""A run in memory, with the interface of one on disk."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from typing import Any

import xarray as xr

from layerlens.results.run import Run
from layerlens.results.schema import join_samples
from layerlens.results.text_spread import TextSpread
from layerlens.storage.manifest import RunManifest


class RunMemory:
    """What `RunFolder` is on disk, for one process alone; nothing is left when it ends."""

    path = None

    def __init__(self, manifest: RunManifest):
        self._manifest = manifest
        self._samples: dict[int, xr.Dataset] = {}
        self._spreads: dict[int, TextSpread] = {}

    def manifest(self) -> RunManifest:
        return self._manifest

    def amend(self, **found: Any) -> None:
        self._manifest = replace(self._manifest, **found)

    def note_process(self, number: int, device: str) -> None:
        self.amend(processes={**self._manifest.processes, str(number): device})

    def text_spread(self, index: int) -> TextSpread | None:
        return self._spreads.get(index)

    def write_text_spread(self, index: int, part: TextSpread) -> None:
        self._spreads[index] = part

    def has(self, index: int, tokens: int | None = None) -> bool:
        return index in self._samples and (tokens is None or self._samples[index].attrs["tokens_per_sample"] >= tokens)

    def read(self, index: int) -> xr.Dataset:
        return self._samples[index]

    def write(self, index: int, sample: xr.Dataset) -> None:
        self._samples[index] = sample

    def run(self) -> Run:
        """All samples as one run."""
        return Run(join_samples([self._samples[index] for index in sorted(self._samples)]), self._manifest)

    def claim(self, name: str) -> AbstractContextManager[bool]:
        return nullcontext(True)
