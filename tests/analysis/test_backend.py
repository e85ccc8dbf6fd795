"""One backend computes a whole run; the folder names it, continues with it and refuses another."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import layerlens as ll
from layerlens.analysis import pipeline
from layerlens.decode.choose import processor_name
from layerlens.errors import RunError, SelectionError
from layerlens.results import RunFolder
from tests.support.tiny_models import random_ids

SAMPLES = [ll.Sample(random_ids(6, seed), 2) for seed in range(3)]


def test_run_names_its_backend_and_device(qwen: ll.LensModel, tmp_path: Path) -> None:
    run = ll.analyze(qwen, SAMPLES, backend="torch-mm", out=tmp_path / "run")
    assert (run.manifest.config.backend, run.manifest.device) == ("torch-mm", processor_name(torch.device("cpu")))
    assert ll.open_run(tmp_path / "run").manifest == run.manifest
    assert ll.analyze(qwen, SAMPLES).manifest.config.backend not in ("auto", "torch", "compile", "native"), "a concrete one is recorded"


def test_auto_continues_with_the_backend_that_a_folder_was_begun_with(
    qwen: ll.LensModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun = ll.analyze(qwen, SAMPLES, backend="torch-mm", out=tmp_path / "run")
    (tmp_path / "run" / "samples" / "000001.nc").unlink()
    asked = []
    monkeypatch.setattr(pipeline, "resolve_backend", lambda *_, backend, **__: asked.append(backend) or backend)
    run = ll.analyze(qwen, SAMPLES, out=tmp_path / "run")
    assert asked == ["torch-mm"]
    assert run.data.identical(begun.data)


def test_another_backend_is_refused(qwen: ll.LensModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ll.analyze(qwen, SAMPLES, backend="torch-mm", out=tmp_path / "run")
    monkeypatch.setattr(pipeline, "resolve_backend", lambda *_, backend, **__: backend)
    with pytest.raises(RunError, match=r"config\.backend is 'torch-mm' there and 'compile-mm' now"):
        ll.analyze(qwen, SAMPLES, backend="compile-mm", out=tmp_path / "run")
    monkeypatch.undo()
    with pytest.raises(SelectionError, match="fastest"):
        ll.analyze(qwen, SAMPLES, backend="fastest", out=tmp_path / "run")


def test_a_folder_that_another_process_begins_meanwhile_decides(
    qwen: ll.LensModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two machines that find different backends fastest, started at once: the second takes what the first has written."""
    real = RunFolder.begin
    first = ll.analyze(qwen, SAMPLES[:1]).manifest  # of the same model; only its backend matters here

    def begin(path: Path, manifest: object) -> RunFolder:
        monkeypatch.setattr(RunFolder, "begin", real)
        ll.analyze(qwen, SAMPLES, backend="torch-mm", out=path)
        return real(path, manifest)  # type: ignore[arg-type]

    monkeypatch.setattr(RunFolder, "begin", begin)
    monkeypatch.setattr(pipeline, "resolve_backend", lambda *_, backend, **__: "native-float32" if backend == "auto" else backend)
    assert first.config.backend is not None
    assert ll.analyze(qwen, SAMPLES, out=tmp_path / "run").manifest.config.backend == "torch-mm"


def test_another_device_is_warned_of(qwen: ll.LensModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ll.analyze(qwen, SAMPLES, out=tmp_path / "run")
    monkeypatch.setattr(pipeline, "processor_name", lambda device: "another card")
    with pytest.warns(UserWarning, match="what another card adds agrees with it to rounding"):
        ll.analyze(qwen, SAMPLES, out=tmp_path / "run")
