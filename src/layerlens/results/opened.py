"""Opening a run folder."""

from __future__ import annotations

from pathlib import Path

from layerlens.errors import RunError
from layerlens.results.folder import RunFolder
from layerlens.results.means import SampleFacts
from layerlens.results.run import Run
from layerlens.results.schema import join_samples
from layerlens.results.stored import StoredRun
from layerlens.storage.hub import local_folder


def open_run(path: str | Path, variables: list[str] | None = None) -> Run:
    """Opens a run folder with its finished samples (`Run.complete` says whether all of them are finished).

    Of each sample it is checked that its file is there and belongs there; what is read later is compared with its digest. `data` is
    read when it is used, means come from the small files beside the samples. A folder of an earlier version is read whole.

    Args:
        path: a folder made by `analyze(..., out=path)`, or `hf://datasets/user/run` (`@revision`), which `Run.push_to_hub` made.
        variables: names of the variables to read, all by default; they are then read whole, but for a run of means alone.

    Raises:
        RunError: no such run, nothing in it yet, or a damaged file.
    """
    folder = RunFolder(local_folder(path, {RunFolder.manifest_file, *RunFolder.entries}))
    manifest = folder.manifest()
    done = folder.done()
    if not done:
        raise RunError(f"{folder.path}: no sample is finished yet; run the same `layerlens analyze` again to fill it")
    if (variables is None or not folder.keeps_rows) and folder.has_means(done):
        facts: list[SampleFacts] = []
        layouts: dict[str, None] = {}
        for number in done:
            with folder.reading_means(number) as file:
                facts.append(file.facts)
                layouts[file.layout] = None
        if len(layouts) == 1:
            return StoredRun(folder, manifest, done, facts, *layouts)
    return Run(join_samples([folder.read(number, variables) for number in done]), manifest, folder.path)
