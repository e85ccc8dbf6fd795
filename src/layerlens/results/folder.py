"""A run on disk: run.json and one file per sample, each written whole or not at all.

Processes that fill one folder claim batches by file locks, which the operating system drops when a process dies, so a
killed one leaves nothing behind but samples that are done.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import h5netcdf
import xarray as xr
from filelock import FileLock

from layerlens.errors import RunError, SelectionError
from layerlens.storage.files import claim, defer_interrupt, disk_errors_as_run_errors, remove_stale_temporaries, write_atomic
from layerlens.storage.manifest import FORMAT, require_same

MANIFEST = "run.json"
SAMPLES = "samples"
LOCKS = ".locks"


class RunFolder:
    """The files of one run. Make one with `create` to write, or with the path of an existing one to read."""

    def __init__(self, path: str | Path):
        self.path = Path(path).expanduser()
        self._decoded: dict[int, int] = {}
        """Tokens of each sample that are known to be decoded, where not all are; they only become more."""

    @classmethod
    def create(cls, path: str | Path, manifest: Mapping[str, Any]) -> RunFolder:
        """Opens a folder for writing: a new one, or one that the same configuration has begun to fill.

        Raises RunError where the folder belongs to another configuration, holds something else, or can not be written.
        """
        folder = cls(path)
        with disk_errors_as_run_errors(folder.path):
            there = {entry.name for entry in folder.path.iterdir()} if folder.path.exists() else set()
            if there and not there & {MANIFEST, LOCKS}:
                raise RunError(f"{folder.path} is not empty and holds no run; choose another folder")
            (folder.path / LOCKS).mkdir(parents=True, exist_ok=True)  # first, so that another process knows what the folder is
            (folder.path / SAMPLES).mkdir(exist_ok=True)
            remove_stale_temporaries(folder.path)
            with FileLock(folder.path / LOCKS / "manifest"):
                if (folder.path / MANIFEST).exists():
                    require_same(manifest, folder.manifest(), str(folder.path))
                else:
                    folder._keep_manifest(manifest)
        return folder

    def manifest(self) -> dict[str, Any]:
        """run.json, read. Raises RunError where there is none, or it is damaged or of another format."""
        file = self.path / MANIFEST
        try:
            manifest = json.loads(file.read_text(encoding="utf-8"))
        except FileNotFoundError as error:
            raise RunError(
                f"{self.path} holds no run ({MANIFEST} is missing); make one with `layerlens analyze --out {self.path}`"
            ) from error
        except (OSError, ValueError) as error:
            raise RunError(f"{file} can not be read ({error})") from error
        if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
            raise RunError(f"{file} is not of format {FORMAT}, which this version of layerlens reads")
        return manifest

    def conclude(self, **more: Any) -> None:
        """Adds to run.json what is known only at the end; other processes that fill the folder come to the same."""
        with disk_errors_as_run_errors(self.path), FileLock(self.path / LOCKS / "manifest"):
            manifest = self.manifest()
            if manifest != {**manifest, **more}:
                self._keep_manifest({**manifest, **more})

    def has(self, index: int, tokens: int | None = None) -> bool:
        """Whether a sample is there, and where a number is given with (up to) so many tokens decoded at least."""
        if tokens is None:
            return self._sample(index).exists()
        if self._decoded.get(index, 0) < tokens and self._sample(index).exists():
            with self._opening(index) as file, h5netcdf.File(file, "r") as opened:
                self._decoded[index] = int(opened.attrs["tokens_per_sample"])
        return self._decoded.get(index, 0) >= tokens

    def done(self) -> list[int]:
        """Numbers of the samples that are complete, in order."""
        return sorted(int(file.stem) for file in (self.path / SAMPLES).glob("[0-9]*.nc"))

    def write(self, index: int, sample: xr.Dataset) -> None:
        """Keeps one sample, whole or not at all. Raises RunError where the disk is full or can not be written."""
        with disk_errors_as_run_errors(self.path), defer_interrupt():
            write_atomic(self._sample(index), lambda tmp: sample.to_netcdf(tmp, engine="h5netcdf"))

    def read(self, index: int, variables: list[str] | None = None) -> xr.Dataset:
        """One sample, in memory; only the named variables if any are named."""
        with self._opening(index) as file, xr.open_dataset(file, engine="h5netcdf") as opened:
            lacking = sorted(set(variables or ()) - set(map(str, opened.data_vars)))
            if lacking:
                raise SelectionError(f"{file} has no {', '.join(lacking)}; it has {', '.join(map(str, opened.data_vars))}")
            return (opened if variables is None else opened.drop_vars(set(opened.data_vars) - set(variables))).load()

    def claim(self, batch: int) -> AbstractContextManager[bool]:
        """Whether this process holds the batch; another living process may."""
        return claim(self.path / LOCKS / f"{batch:06d}")

    def _keep_manifest(self, manifest: Mapping[str, Any]) -> None:
        text = json.dumps(manifest, indent=2, ensure_ascii=False, default=lambda number: number.item()) + "\n"
        write_atomic(self.path / MANIFEST, lambda tmp: tmp.write_text(text, encoding="utf-8"))

    @contextmanager
    def _opening(self, index: int) -> Iterator[Path]:
        """Inside, a sample's file that can not be read is a RunError of one line."""
        file = self._sample(index)
        try:
            with defer_interrupt():
                yield file
        except SelectionError:
            raise
        except Exception as error:  # a damaged HDF5 file fails in many ways
            raise RunError(f"{file} is damaged ({error}); remove it and run the same analysis again to restore it") from error

    def _sample(self, index: int) -> Path:
        return self.path / SAMPLES / f"{index:06d}.nc"
