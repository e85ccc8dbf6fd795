"""Whether the files of a run are what was written: every digest, every sample's place."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from layerlens.errors import RunError
from layerlens.results.folder import RunFolder
from layerlens.results.seal import DamagedFile


@dataclass(frozen=True)
class RunCheck:
    """What `check_run` found.

    Attributes:
        samples: number of samples that the run is to have; finished: number of those that are there.
        damaged: files that are not what the run wrote there, and why, in a few words each.
        strange: files among the samples that no sample of the run has, such as those that were set aside.
        undigested: number of whole files that an earlier version wrote, without a digest: they can be read, but damage to the
            numbers in them would not be seen.
    """

    samples: int
    finished: int
    damaged: dict[str, str]
    strange: tuple[str, ...]
    undigested: int

    @property
    def ok(self) -> bool:
        return not self.damaged


def is_run(path: str | Path) -> bool:
    """Whether a path is that of a run folder."""
    return (Path(path).expanduser() / RunFolder.manifest_file).is_file()


def check_run(path: str | Path) -> RunCheck:
    """Reads every file of a run folder and compares it with its digests. Raises RunError if there is no run, or its manifest is damaged."""
    folder = RunFolder(path)
    manifest, done = folder.manifest(), folder.done()
    damaged: dict[str, str] = {}
    undigested = 0
    for number in done:
        try:
            undigested += not folder.check(number)
        except RunError as error:
            file = error.file if isinstance(error, DamagedFile) else folder.file(number)
            damaged[file.name] = " ".join(str(error.__cause__ or error).split())
    strange = tuple(file.name for file in folder.strange())
    return RunCheck(manifest.samples.count, len(done) - len(damaged), damaged, strange, undigested)
