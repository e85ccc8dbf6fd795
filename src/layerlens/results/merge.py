"""Shards of a run put together: folders that hold different samples of one computation."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from layerlens.errors import RunError
from layerlens.results.folder import RunFolder
from layerlens.results.opened import open_run
from layerlens.results.run import Run
from layerlens.storage.files import disk_errors_as_run_errors, write_atomic
from layerlens.storage.manifest import require_same


def merge(out: str | Path, shards: Sequence[str | Path]) -> Run:
    """Copies the samples of several run folders into one: a new folder, or one that holds samples of the same computation.

    Every file is compared with its digests before it is copied. Samples that several shards hold must be alike to the last bit;
    samples that no shard holds may be added later, by another call or by the same `analyze`.

    Args:
        out: the folder to fill.
        shards: folders that `analyze` filled, each with the same model, samples and configuration, as with `shard=(number, count)`.

    Raises:
        RunError: a shard is another computation, holds a damaged file, or differs from another in a sample; `out` holds something else.
    """
    folders = [RunFolder(shard) for shard in shards]
    if not folders:
        raise RunError("nothing to merge: name the folders of the shards")
    first = folders[0].manifest()
    for folder in folders:
        manifest = folder.manifest()
        if manifest.config.backend != first.config.backend:
            raise RunError(
                f"{folder.path} was computed by backend {manifest.config.backend}, and {folders[0].path} by {first.config.backend}, which "
                "round otherwise: measure one of them again, with the other's --backend"
            )
        require_same(first, manifest, folder.path)
        if (manifest.identity, manifest.keep) != (first.identity, first.keep) or not first.identity:
            raise RunError(f"{folder.path} was begun by another version of layerlens, or keeps other files, than {folders[0].path}")
        if manifest.spread != first.spread:
            raise RunError(f"{folder.path} measured its own spread of logits: give all shards one with spread=")
        for number in folder.done():
            folder.check(number)
    target = RunFolder.begin(out, replace(first, stopping=None))
    with disk_errors_as_run_errors(target.path):
        for folder in folders:
            for number in folder.done():
                _copy(folder.means_file(number), target.means_file(number))
                _copy(folder.file(number), target.file(number))
    return open_run(target.path)


def _copy(source: Path, target: Path) -> None:
    if not source.exists():  # rows that are not kept
        return
    if not target.exists():
        write_atomic(target, lambda tmp: shutil.copyfile(source, tmp))
    elif target.read_bytes() != source.read_bytes():
        raise RunError(f"{source} and {target} are one sample with different numbers: they were not made alike, so they are not merged")
