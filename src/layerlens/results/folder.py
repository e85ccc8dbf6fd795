"""A run on disk: run.json and one file per sample, each written whole or not at all.

Processes that fill one folder claim batches by file locks, which the operating system drops when a process dies, so a
killed process leaves nothing behind but finished samples.
"""

from __future__ import annotations

import os
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

import h5py
import xarray as xr

from layerlens.errors import RunError, SelectionError
from layerlens.results.netcdf import read_netcdf, variables_of
from layerlens.results.schema import require_labels, upgraded
from layerlens.results.seal import DIGESTS, require_all, require_place, sealed, unsealed
from layerlens.results.text_spread import TextSpread
from layerlens.storage.files import defer_interrupt, disk_errors_as_run_errors, write_atomic, write_text
from layerlens.storage.folder import SharedFolder
from layerlens.storage.manifest import AnalysisConfig, RunManifest, identify, write_manifest
from layerlens.storage.texts import TEXTS

SAMPLES = "samples"
NUMBERED = re.compile(r"[0-9]{6,9}\.nc")
"""The name of a sample's file: its number from 0."""
SPREADS = "spread"
"""Folder of what the samples contribute to the spread of norm "matched"."""


class RunFolder(SharedFolder[RunManifest]):
    """The files of one run. Make one with `begin` to write, or with the path of an existing one to read."""

    manifest_file = "run.json"
    manifest_type = RunManifest
    holds = "run"
    made_by = "layerlens analyze --out"
    entries = frozenset({SAMPLES, SPREADS, TEXTS})

    def __init__(self, path: str | Path):
        super().__init__(path)
        self._rows_decoded: dict[int, int] = {}
        """For each sample of which only some rows were drawn: the largest `tokens_per_sample` known to be on disk. It never decreases."""

    @classmethod
    def begin(cls, path: str | Path, manifest: RunManifest) -> RunFolder:
        """As `SharedFolder.create`. Files that are damaged, or belong elsewhere, are set aside with a warning."""
        manifest = replace(manifest, identity=identify(manifest))
        folder = cls.create(path, manifest, lambda folder: (folder.path / SAMPLES).mkdir(exist_ok=True))
        folder._set_damage_aside()
        return folder

    @cached_property
    def identity(self) -> str:
        """What every sample's file of this run says it belongs to; empty in folders of before there was one."""
        return self.manifest().identity

    @cached_property
    def _config(self) -> AnalysisConfig:
        return self.manifest().config

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
            return self.file(index).exists()
        if self._rows_decoded.get(index, 0) < tokens and self.file(index).exists():
            with self._opening(index) as file:
                self._rows_decoded[index] = int(file.attrs["tokens_per_sample"].item())
        return self._rows_decoded.get(index, 0) >= tokens

    def done(self) -> list[int]:
        """Numbers of the finished samples, in order."""
        count = self.manifest().samples.count
        numbers = [int(file.stem) for file in (self.path / SAMPLES).glob("*.nc") if NUMBERED.fullmatch(file.name)]
        return sorted(number for number in numbers if number < count)

    def strange(self) -> list[Path]:
        """Files among the samples that no sample of this run has: oddly named, of a number beyond the last, or set aside."""
        known = {self.file(number).name for number in self.done()}
        there = (self.path / SAMPLES).iterdir() if (self.path / SAMPLES).is_dir() else []
        return sorted(file for file in there if file.name not in known and not file.name.endswith(".tmp"))

    def write(self, index: int, sample: xr.Dataset) -> None:
        """Writes one sample, whole or not at all. Raises RunError if the disk is full or cannot be written."""
        with disk_errors_as_run_errors(self.path), defer_interrupt():
            write_atomic(self.file(index), lambda tmp: sealed(sample, self.identity, index).to_netcdf(tmp, engine="h5netcdf"))

    def read(self, index: int, variables: list[str] | None = None) -> xr.Dataset:
        """One sample, in memory; only the named variables if any are named. Raises RunError unless all that is read has its digest."""
        with self._opening(index) as file:
            there = variables_of(file)
            require_all(file.attrs, there)
            lacking = sorted(set(variables or ()) - there.keys())
            if lacking:
                raise SelectionError(f"{self.file(index)} has no {', '.join(lacking)}; it has {', '.join(there)}")
            sample = upgraded(unsealed(read_netcdf(file, variables), self.identity, index))
            require_labels(sample.variables, self._config)
            return sample

    def look_over(self, index: int) -> None:
        """Raises RunError unless a sample's file says that it is this sample of this run, and holds every variable that it lists."""
        with self._opening(index) as file:
            require_place(file.attrs, self.identity, index)
            require_all(file.attrs, variables_of(file))
            require_labels(variables_of(file), self._config)

    def check(self, index: int) -> bool:
        """Reads all of a sample's file; returns whether digests vouch for it. Raises RunError if it is damaged or in a wrong place."""
        self.read(index)
        with self._opening(index) as file:
            return DIGESTS in file.attrs

    def _set_damage_aside(self) -> None:
        """Renames each sample's file that is not what this run wrote there, with a warning. One process at a time does it."""
        done = self.done()
        with self.claim("damage") as mine:
            for number in done if mine else []:
                file = self.file(number)
                try:
                    self.read(number)
                except RunError as error:
                    with suppress(FileNotFoundError):
                        os.replace(file, aside := file.with_name(f"{file.name}.damaged"))
                        warnings.warn(f"{error.__cause__ or error}: set aside as {aside.name}, and made again", stacklevel=4)

    @contextmanager
    def _opening(self, index: int) -> Iterator[h5py.File]:
        """A context with a sample's open file; one that cannot be read, or is not what it should be, raises a RunError of one line."""
        path = self.file(index)
        try:
            with defer_interrupt(), h5py.File(path, "r") as file:
                yield file
        except SelectionError:
            raise
        except Exception as error:  # a damaged HDF5 file fails in many ways
            raise RunError(f"{path} is damaged ({error}); run the same analysis again, which sets it aside and restores it") from error

    def _text_spread(self, index: int) -> Path:
        return self.path / SPREADS / f"{index:06d}.json"

    def file(self, index: int) -> Path:
        """The file of a sample, which need not exist."""
        return self.path / SAMPLES / f"{index:06d}.nc"
