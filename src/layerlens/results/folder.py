"""A run on disk: run.json and one file per sample, each written whole or not at all.

Processes that fill one folder claim batches by file locks, which the operating system drops when a process dies, so a
killed process leaves nothing behind but finished samples.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import h5netcdf
import xarray as xr

from layerlens.errors import RunError, SelectionError
from layerlens.results.schema import upgraded
from layerlens.results.text_spread import TextSpread
from layerlens.storage.files import defer_interrupt, disk_errors_as_run_errors, write_atomic, write_text
from layerlens.storage.folder import SharedFolder
from layerlens.storage.manifest import RunManifest, write_manifest

SAMPLES = "samples"
SPREADS = "spread"
"""Folder of what the samples contribute to the spread of norm "matched"."""


class RunFolder(SharedFolder[RunManifest]):
    """The files of one run. Make one with `begin` to write, or with the path of an existing one to read."""

    manifest_file = "run.json"
    manifest_type = RunManifest
    holds = "run"
    made_by = "layerlens analyze --out"
    entries = frozenset({SAMPLES, SPREADS})

    def __init__(self, path: str | Path):
        super().__init__(path)
        self._rows_decoded: dict[int, int] = {}
        """For each sample of which only some rows were drawn: the largest `tokens_per_sample` known to be on disk. It never decreases."""

    @classmethod
    def begin(cls, path: str | Path, manifest: RunManifest) -> RunFolder:
        """As `SharedFolder.create`."""
        return cls.create(path, manifest, lambda folder: (folder.path / SAMPLES).mkdir(exist_ok=True))

    def backend(self) -> str | None:
        """The readout's backend that the folder was begun with; None if it was not begun, or by a version that named none."""
        return self.manifest().config.backend if (self.path / self.manifest_file).is_file() else None

    def amend(self, **found: Any) -> None:
        """Adds what all samples together gave to run.json, such as `stopping`; other processes that fill the folder find the same."""
        with disk_errors_as_run_errors(self.path), self.lock("manifest"):
            manifest = self.manifest()
            if (amended := replace(manifest, **found)) != manifest:
                write_manifest(self.path / self.manifest_file, amended)

    def text_spread(self, index: int) -> TextSpread | None:
        """What a sample contributes to the run's spread; None if it is not known yet."""
        file = self._text_spread(index)
        try:
            return TextSpread.from_json(file.read_text(encoding="utf-8"))
        except FileNotFoundError:
            return None
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise RunError(f"{file} is damaged ({error}); remove it and run the same analysis again to restore it") from error

    def write_text_spread(self, index: int, part: TextSpread) -> None:
        """Writes what a sample contributes to the run's spread, whole or not at all."""
        with defer_interrupt():
            write_text(self._text_spread(index), part.to_json())

    def has(self, index: int, tokens: int | None = None) -> bool:
        """Whether a sample is there; with `tokens`, whether (up to) that many of its response tokens are decoded."""
        if tokens is None:
            return self._sample(index).exists()
        if self._rows_decoded.get(index, 0) < tokens and self._sample(index).exists():
            with self._opening(index) as file, h5netcdf.File(file, "r") as opened:
                self._rows_decoded[index] = int(opened.attrs["tokens_per_sample"])
        return self._rows_decoded.get(index, 0) >= tokens

    def done(self) -> list[int]:
        """Numbers of the finished samples, in order."""
        return sorted(int(file.stem) for file in (self.path / SAMPLES).glob("[0-9]*.nc"))

    def write(self, index: int, sample: xr.Dataset) -> None:
        """Writes one sample, whole or not at all. Raises RunError if the disk is full or cannot be written."""
        with disk_errors_as_run_errors(self.path), defer_interrupt():
            write_atomic(self._sample(index), lambda tmp: sample.to_netcdf(tmp, engine="h5netcdf"))

    def read(self, index: int, variables: list[str] | None = None) -> xr.Dataset:
        """One sample, in memory; only the named variables if any are named."""
        with self._opening(index) as file, xr.open_dataset(file, engine="h5netcdf") as opened:
            lacking = sorted(set(variables or ()) - set(map(str, opened.data_vars)))
            if lacking:
                raise SelectionError(f"{file} has no {', '.join(lacking)}; it has {', '.join(map(str, opened.data_vars))}")
            return upgraded((opened if variables is None else opened.drop_vars(set(opened.data_vars) - set(variables))).load())

    @contextmanager
    def _opening(self, index: int) -> Iterator[Path]:
        """A context in which a sample's file that cannot be read raises a RunError of one line."""
        file = self._sample(index)
        try:
            with defer_interrupt():
                yield file
        except SelectionError:
            raise
        except Exception as error:  # a damaged HDF5 file fails in many ways
            raise RunError(f"{file} is damaged ({error}); remove it and run the same analysis again to restore it") from error

    def _text_spread(self, index: int) -> Path:
        return self.path / SPREADS / f"{index:06d}.json"

    def _sample(self, index: int) -> Path:
        return self.path / SAMPLES / f"{index:06d}.nc"
