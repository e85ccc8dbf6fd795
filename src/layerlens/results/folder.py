"""A run on disk: run.json and one file per sample, each written whole or not at all.

Processes that fill one folder claim batches by file locks, which the operating system drops when a process dies, so a
killed process leaves nothing behind but finished samples.
"""

from __future__ import annotations

import os
import re
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import xarray as xr

from layerlens.errors import RunError, SelectionError
from layerlens.results.means import MeansFile, means_of, write_means
from layerlens.results.netcdf import attributes, read_netcdf, variables_of, write_netcdf
from layerlens.results.rows import row_digest
from layerlens.results.schema import require_labels, upgraded
from layerlens.results.seal import DIGESTS, Damage, DamagedFile, read_sealed, require_all, require_place, sealed, unsealed
from layerlens.results.text_spread import TextSpread
from layerlens.storage.files import defer_interrupt, disk_errors_as_run_errors, write_atomic, write_text
from layerlens.storage.folder import SharedFolder
from layerlens.storage.manifest import AnalysisConfig, RunManifest, identify, write_manifest
from layerlens.storage.texts import TEXTS

SAMPLES, MEANS = "samples", "means"
NUMBERED = re.compile(r"[0-9]{6,9}\.(nc|safetensors)")
"""The name of a sample's file: its number from 0."""
SPREADS = "spread"
"""Folder of what the samples contribute to the spread of norm "matched"."""


class RunFolder(SharedFolder[RunManifest]):
    """The files of one run. Make one with `begin` to write, or with the path of an existing one to read."""

    manifest_file = "run.json"
    manifest_type = RunManifest
    holds = "run"
    made_by = "layerlens analyze --out"
    entries = frozenset({SAMPLES, MEANS, SPREADS, TEXTS})

    def __init__(self, path: str | Path):
        super().__init__(path)
        self._rows_decoded: dict[int, int] = {}
        """For each sample of which only some rows were drawn: the largest `tokens_per_sample` known to be on disk. It never decreases."""

    @classmethod
    def begin(cls, path: str | Path, manifest: RunManifest) -> RunFolder:
        """As `SharedFolder.create`. Files that are damaged, or belong elsewhere, are set aside with a warning."""
        manifest = replace(manifest, identity=identify(manifest))

        def prepare(folder: RunFolder) -> None:
            for name in (SAMPLES, MEANS):
                (folder.path / name).mkdir(exist_ok=True)

        folder = cls.create(path, manifest, prepare)
        if folder.manifest().keep != manifest.keep:
            raise RunError(f"{folder.path} keeps {folder.manifest().keep}, not {manifest.keep}: choose another folder, or remove that one")
        folder._set_damage_aside()
        return folder

    @cached_property
    def identity(self) -> str:
        """What every sample's file of this run says it belongs to; empty in folders of before there was one."""
        return self.manifest().identity

    @cached_property
    def _config(self) -> AnalysisConfig:
        return self.manifest().config

    @cached_property
    def keeps_rows(self) -> bool:
        """Whether samples' rows are kept, or their means alone."""
        return self.manifest().keep == "rows"

    def backend(self) -> str | None:
        """The readout's backend that the folder was begun with; None if it was not begun, or by a version that named none."""
        return self.manifest().config.backend if (self.path / self.manifest_file).is_file() else None

    def amend(self, **found: Any) -> None:
        """Adds what all samples together gave to run.json, such as `stopping`; other processes that fill the folder find the same."""
        with disk_errors_as_run_errors(self.path), self.lock("manifest"):
            manifest = self.manifest()
            if (amended := replace(manifest, **found)) != manifest:
                write_manifest(self.path / self.manifest_file, amended)

    def note_process(self, number: int, device: str) -> None:
        """Adds to run.json on which device and machine a process works."""
        with disk_errors_as_run_errors(self.path), self.lock("manifest"):
            manifest = self.manifest()
            if manifest.processes.get(str(number)) != device:
                processes = {**manifest.processes, str(number): device}
                write_manifest(self.path / self.manifest_file, replace(manifest, processes=processes))

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
        if tokens is None or not self.keeps_rows:
            return self._finished(index).exists()
        if self._rows_decoded.get(index, 0) < tokens and self.file(index).exists():
            with self._opening(index) as file:
                self._rows_decoded[index] = int(file.attrs["tokens_per_sample"].item())
        return self._rows_decoded.get(index, 0) >= tokens

    def done(self) -> list[int]:
        """Numbers of the finished samples, in order."""
        count = self.manifest().samples.count
        folder = self.path / (SAMPLES if self.keeps_rows else MEANS)
        numbers = [int(name[: name.index(".")]) for name in _names(folder) if NUMBERED.fullmatch(name)]
        return sorted(number for number in numbers if number < count)

    def strange(self) -> list[Path]:
        """Files among the samples that no sample of this run has: oddly named, of a number beyond the last, or set aside."""
        known = {file for number in self.done() for file in (self.file(number), self.means_file(number))}
        there = [self.path / folder / name for folder in (SAMPLES, MEANS) for name in _names(self.path / folder)]
        return sorted(file for file in there if file not in known and not file.name.endswith(".tmp"))

    def write(self, index: int, sample: xr.Dataset) -> None:
        """Writes one sample, whole or not at all. Raises RunError if the disk is full or cannot be written."""
        with disk_errors_as_run_errors(self.path), defer_interrupt():
            # first, so that a finished sample always has means
            self._write_means(index, sample)
            if self.keeps_rows:
                write_atomic(self.file(index), lambda tmp: write_netcdf(sealed(sample, self.identity, index), tmp))

    def _write_means(self, index: int, sample: xr.Dataset) -> None:
        means = means_of(sample, self.manifest())
        write_atomic(self.means_file(index), lambda tmp: write_means(tmp, means, self.identity, index))

    def read(self, index: int, variables: list[str] | None = None) -> xr.Dataset:
        """One sample, in memory; only the named variables if any are named. Raises RunError unless all that is read has its digest."""
        with self._opening(index) as file:
            there = variables_of(file)
            require_all(file.attrs, there)
            lacking = sorted(set(variables or ()) - there.keys())
            if lacking:
                raise SelectionError(f"{self.file(index)} has no {', '.join(lacking)}; it has {', '.join(there)}")
            sample = upgraded(unsealed(read_netcdf(file, variables, there), self.identity, index))
            require_labels(sample.variables, self._config)
            return sample

    def read_rows(self, index: int, name: str) -> np.ndarray:
        """One variable of a sample along its rows. Raises RunError unless it has its digest."""
        with self._opening(index) as file:
            require_place(attributes(file), self.identity, index)
            return read_sealed(file, name)

    def has_means(self, numbers: Sequence[int]) -> bool:
        """Whether all these samples have means: earlier versions wrote none."""
        there = set(_names(self.path / MEANS))
        return all(self.means_file(number).name in there for number in numbers)

    def check(self, index: int) -> bool:
        """Reads all of a sample's files; returns whether digests vouch for them. Raises RunError if one is damaged or in a wrong place."""
        sample = self.read(index) if self.keeps_rows else None
        if sample is None or self.means_file(index).exists():
            with self.reading_means(index) as means:
                for name in means.names():
                    means.read(name)
                if sample is not None and means.facts.row_digest != row_digest(sample):
                    raise Damage("its rows are not those of the sample's file")
        if sample is None:
            return True
        with self._opening(index) as file:
            return DIGESTS in file.attrs

    def _set_damage_aside(self) -> None:
        """Renames each file that is not what this run wrote there, with a warning. One process at a time does it."""
        done = self.done()
        with self.claim("damage") as mine:
            for number in done if mine else []:
                try:
                    sample = self.read(number) if self.keeps_rows else None
                except RunError as error:
                    _set_aside(self.file(number), error)
                    continue
                try:
                    self.check(number)
                except RunError as error:
                    _set_aside(self.means_file(number), error)
                if sample is not None and not self.means_file(number).exists():
                    self._write_means(number, sample)

    @contextmanager
    def reading_means(self, index: int) -> Iterator[MeansFile]:
        """A context with a sample's open file of means; one that is not what it should be raises a RunError of one line."""
        path = self.means_file(index)
        try:
            yield MeansFile(path, self.identity, index)
        except Exception as error:
            raise _damaged(path, error) from error

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
            raise _damaged(path, error) from error

    def _text_spread(self, index: int) -> Path:
        return self.path / SPREADS / f"{index:06d}.json"

    def file(self, index: int) -> Path:
        """The file of a sample, which need not exist."""
        return self.path / SAMPLES / f"{index:06d}.nc"

    def means_file(self, index: int) -> Path:
        """The file of a sample's means, which need not exist."""
        return self.path / MEANS / f"{index:06d}.safetensors"

    def _finished(self, index: int) -> Path:
        """The file that is written last of a sample."""
        return self.file(index) if self.keeps_rows else self.means_file(index)


def _names(folder: Path) -> list[str]:
    return os.listdir(folder) if folder.is_dir() else []


def _set_aside(file: Path, error: RunError) -> None:
    with suppress(FileNotFoundError):
        os.replace(file, aside := file.with_name(f"{file.name}.damaged"))
        warnings.warn(f"{error.__cause__ or error}: set aside as {aside.name}, and made again", stacklevel=5)


def _damaged(path: Path, error: Exception) -> DamagedFile:
    return DamagedFile(f"{path} is damaged ({error}); run the same analysis again, which sets it aside and restores it", path)
