"""Files are written by a thread while the next batch is measured; what goes wrong there is an error of the analysis."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import pytest
import xarray as xr

import layerlens as ll
from layerlens.analysis import batches
from layerlens.errors import RunError
from layerlens.results import RunFolder
from tests.support.tiny_models import random_ids

SAMPLES = [ll.Sample(random_ids(8, n), 3) for n in range(4)]
ASK: dict[str, Any] = {"metrics": "entropy", "batch_tokens": 8, "progress": False}


def test_a_sample_is_written_while_the_next_one_is_measured(qwen: ll.LensModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    measured, written = [threading.Event() for _ in range(len(SAMPLES) + 1)], []
    measure, write = batches.measure_batch, RunFolder.write

    def noting(*args: Any) -> Any:
        found = list(measure(*args))
        next(event for event in measured if not event.is_set()).set()
        return iter(found)

    def waiting(folder: RunFolder, index: int, sample: xr.Dataset) -> None:
        met = index + 1 == len(SAMPLES) or measured[index + 1].wait(60)
        written.append((index, met, threading.current_thread() is threading.main_thread()))
        write(folder, index, sample)

    monkeypatch.setattr(batches, "measure_batch", noting)
    monkeypatch.setattr(RunFolder, "write", waiting)
    run = ll.analyze(qwen, SAMPLES, out=tmp_path / "run", **ASK)
    assert written == [(index, True, False) for index in range(len(SAMPLES))]
    monkeypatch.undo()
    xr.testing.assert_identical(run.data, ll.analyze(qwen, SAMPLES, **ASK).data)


def test_an_error_of_the_writer_ends_the_analysis_and_what_was_written_stays(
    qwen: ll.LensModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = RunFolder.write

    def full(folder: RunFolder, index: int, sample: xr.Dataset) -> None:
        if index == 1:
            raise RunError("no space left on the disk")
        write(folder, index, sample)

    monkeypatch.setattr(RunFolder, "write", full)
    with pytest.raises(RunError, match=r"^no space left on the disk$"):
        ll.analyze(qwen, SAMPLES, out=tmp_path / "run", **ASK)
    folder = RunFolder(tmp_path / "run")
    assert folder.done() == [0, 2], "sample 2 was measured when the error came, and was written too"
    assert folder.check(0)
    assert not any(thread.name.startswith("layerlens-writer") for thread in threading.enumerate())
    monkeypatch.undo()
    xr.testing.assert_identical(ll.analyze(qwen, SAMPLES, out=tmp_path / "run", **ASK).data, ll.analyze(qwen, SAMPLES, **ASK).data)
