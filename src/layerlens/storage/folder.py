"""A folder that several processes fill: its manifest, and locks that end with the process that holds them."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, ClassVar, Generic, TypeVar

from filelock import BaseFileLock

from layerlens.errors import RunError
from layerlens.storage.files import disk_errors_as_run_errors, remove_stale_temporaries
from layerlens.storage.locks import claim, file_lock
from layerlens.storage.manifest import Manifest, read_manifest, require_same, write_manifest

LOCKS = ".locks"
OTHERS = {
    "run.json": "a run", "eval.json": "an evaluation", "*/eval.json": "evaluations", "schedule.json": "a training",
    "config.json": "a model",
}  # fmt: skip
"""Pattern of a file that shows what a folder holds -> that, in words."""

Folder = TypeVar("Folder", bound="SharedFolder[Any]")


class SharedFolder(Generic[Manifest]):
    """A manifest, files of results, and locks. Make one with `create` to write, or with the path of an existing one to read.

    Subclasses name the manifest's file and type, what the folder holds in words, and the command that makes one.
    """

    manifest_file: ClassVar[str]
    manifest_type: ClassVar[Any]
    holds: ClassVar[str]
    made_by: ClassVar[str]
    entries: ClassVar[frozenset[str]]
    """Names of all other files and folders that may lie in it."""

    def __init__(self, path: str | Path):
        self.path = Path(path).expanduser()

    @classmethod
    def create(cls: type[Folder], path: str | Path, manifest: Any, prepare: Callable[[Folder], None] = lambda folder: None) -> Folder:
        """Opens a folder for writing: a new one, or one that the same configuration has begun to fill.

        `prepare` makes, under the lock, what is missing of the files and folders that must exist beside the manifest, and before it.

        Raises RunError if the folder belongs to another configuration, holds something else, or cannot be written.
        """
        folder = cls(path)
        with disk_errors_as_run_errors(folder.path):
            there = {entry.name for entry in folder.path.iterdir()} if folder.path.exists() else set()
            if cls.manifest_file not in there:
                known = cls.entries | {LOCKS}
                strange = sorted(name for name in there if name not in known and not name.endswith(".tmp"))
                if strange:
                    raise RunError(f"{folder.path} is not empty and holds no {cls.holds} ({strange[0]}); choose another folder")
            (folder.path / LOCKS).mkdir(parents=True, exist_ok=True)  # first, so that another process knows what the folder is
            remove_stale_temporaries(folder.path)
            with folder.lock("manifest"):
                begun = (folder.path / cls.manifest_file).exists()
                if begun:
                    require_same(manifest, folder.manifest(), folder.path)
                prepare(folder)
                if not begun:
                    write_manifest(folder.path / cls.manifest_file, manifest)
        return folder

    def manifest(self) -> Manifest:
        """The manifest, read. Raises RunError if there is none, or if it is damaged or of another format."""
        file = self.path / self.manifest_file
        if not file.is_file():
            other = next((what for pattern, what in OTHERS.items() if pattern != self.manifest_file and any(self.path.glob(pattern))), None)
            if other is not None:
                raise RunError(f"{self.path} holds {other}, and no {self.holds}; make one with `{self.made_by}`")
            raise RunError(f"{self.path} holds no {self.holds} ({self.manifest_file} is missing); make one with `{self.made_by}`")
        manifest: Manifest = read_manifest(file, self.manifest_type)
        return manifest

    def lock(self, name: str) -> BaseFileLock:
        """A lock to wait for, as a context."""
        return file_lock(self.path / LOCKS / name)

    def claim(self, name: str) -> AbstractContextManager[bool]:
        """A context that tells whether this process holds the named piece of work; another living process may."""
        return claim(self.path / LOCKS / name)
