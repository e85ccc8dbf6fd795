"""A run on disk: whole samples or none, the same numbers however often it was killed, one configuration per folder."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import numpy as np
import pytest
import xarray as xr

import layerlens as ll
from layerlens.errors import RunError, SelectionError
from layerlens.storage.manifest import SamplingSettings
from tests.support.kills import assert_same_run, finish, run_through_kills, run_together, run_whole, start_workers
from tests.support.tiny_models import random_ids, tiny_model


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, float]:
    out = tmp_path_factory.mktemp("whole") / "run"
    return out, run_whole(out)


@pytest.mark.parametrize("portion", range(4))
def test_a_killed_run_ends_as_if_never_killed(portion: int, uninterrupted: tuple[Path, float], tmp_path: Path) -> None:
    """Five SIGKILLs at random moments each, twenty in all, the run started again after every one."""
    whole, seconds = uninterrupted
    out = tmp_path / "run"
    run_through_kills(out, 5, seconds, seed=portion)
    assert_same_run(whole, out)


def test_two_processes_fill_one_folder(uninterrupted: tuple[Path, float], tmp_path: Path) -> None:
    whole, _ = uninterrupted
    out = tmp_path / "run"
    for worker in start_workers(out, 2):
        finish(worker)
    assert_same_run(whole, out)


def test_what_killed_processes_leave_the_others_finish(uninterrupted: tuple[Path, float], tmp_path: Path) -> None:
    """Five processes, three of them killed: the two that live leave a whole run, with nothing doubled, and are not run again."""
    whole, seconds = uninterrupted
    out = tmp_path / "run"
    run_together(out, workers=5, killed=3, seconds=seconds, seed=0)
    assert_same_run(whole, out)


def test_two_processes_share_the_work(qwen: ll.LensModel, tmp_path: Path) -> None:
    """A batch that another living process holds is left to it; what it has finished is not done again."""
    from layerlens.results import RunFolder

    samples = [ll.Sample(random_ids(6, i), 2) for i in range(4)]
    whole = ll.analyze(qwen, samples, out=tmp_path / "a", batch_tokens=6)
    folder = RunFolder.begin(tmp_path / "b", whole.manifest)
    with folder.claim("000001") as mine, folder.claim("000001") as again:
        assert mine
        assert not again
        folder.write(1, folder_sample := RunFolder(tmp_path / "a").read(1))
    before = (folder.path / "samples" / "000001.nc").stat().st_mtime_ns
    ll.analyze(qwen, samples, out=tmp_path / "b", batch_tokens=6)
    assert (folder.path / "samples" / "000001.nc").stat().st_mtime_ns == before
    assert folder_sample.sizes["token"] == 6
    assert_same_run(tmp_path / "a", tmp_path / "b")


def test_save_then_open_is_the_identity(qwen: ll.LensModel, tmp_path: Path) -> None:
    samples = [ll.Sample(random_ids(n, n), 2, id=f"s{n}", ground_truth="42") for n in (4, 9)]
    in_memory = ll.analyze(qwen, samples, top_k=3, kl_from_layer=1)
    saved = ll.analyze(qwen, samples, top_k=3, kl_from_layer=1, out=tmp_path / "run")
    opened = ll.open_run(tmp_path / "run")
    xr.testing.assert_identical(saved.data, opened.data)
    for name in in_memory.data.variables:
        np.testing.assert_array_equal(in_memory.data[name].values, opened.data[name].values)
        assert in_memory.data[name].attrs == opened.data[name].attrs
    assert opened.complete
    assert opened.norm == opened.data.attrs["norm"] == "none"
    only = ll.open_run(tmp_path / "run", variables=["entropy"])
    assert set(only.data.data_vars) == {"entropy"}
    xr.testing.assert_equal(only.mean("entropy"), opened.mean("entropy"))


def test_a_folder_of_another_configuration_is_refused(qwen: ll.LensModel, tmp_path: Path) -> None:
    samples = [ll.Sample(random_ids(5), 2)]
    ll.analyze(qwen, samples, out=tmp_path / "run")
    before = sorted(file.read_bytes() for file in (tmp_path / "run").rglob("*.nc"))
    with pytest.raises(RunError, match=r"config.norm is 'none' there and 'final' now"):
        ll.analyze(qwen, samples, norm="final", out=tmp_path / "run")
    with pytest.raises(RunError, match=r"samples\.digest"):
        ll.analyze(qwen, [ll.Sample(random_ids(5, 9), 2)], out=tmp_path / "run")
    other = ll.LensModel.wrap(tiny_model("qwen3", seed=1), name="tiny-random")
    with pytest.raises(RunError, match=r"model\.fingerprint"):
        ll.analyze(other, samples, out=tmp_path / "run")
    assert before == sorted(file.read_bytes() for file in (tmp_path / "run").rglob("*.nc"))
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "thesis.tex").write_text("do not touch")
    with pytest.raises(RunError, match="not empty and holds no run"):
        ll.analyze(qwen, samples, out=tmp_path / "other")


def test_an_unfinished_run_can_be_looked_at(qwen: ll.LensModel, tmp_path: Path) -> None:
    samples = [ll.Sample(random_ids(5, i), 2) for i in range(3)]
    ll.analyze(qwen, samples, out=tmp_path / "run")
    (tmp_path / "run" / "samples" / "000001.nc").unlink()
    run = ll.open_run(tmp_path / "run")
    assert (run.n_samples, run.complete) == (2, False)
    assert run.sample(2).sizes["token"] == 5
    assert run.mean("entropy").attrs["samples"] == 2
    with pytest.raises(SelectionError, match="no sample 1"):
        run.sample(1)


def test_damage_is_told(qwen: ll.LensModel, tmp_path: Path) -> None:
    ll.analyze(qwen, [ll.Sample(random_ids(5), 2)], out=tmp_path / "run")
    sample = tmp_path / "run" / "samples" / "000000.nc"
    sample.write_bytes(sample.read_bytes()[:1000])
    with pytest.raises(RunError, match=r"000000.nc is damaged"):
        ll.open_run(tmp_path / "run").data["entropy"].load()
    (tmp_path / "run" / "run.json").write_text("{")
    with pytest.raises(RunError, match="cannot be read"):
        ll.open_run(tmp_path / "run")
    with pytest.raises(RunError, match="holds no run"):
        ll.open_run(tmp_path)


def test_a_full_disk_is_told_and_loses_nothing(qwen: ll.LensModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    samples = [ll.Sample(random_ids(5, i), 2) for i in range(3)]
    replace, calls = os.replace, []

    def full(source: str, target: str) -> None:
        calls.append(target)
        if len(calls) >= 4:  # run.json, means and rows of the first sample, then no more
            raise OSError(errno.ENOSPC, "No space left on device")
        replace(source, target)

    monkeypatch.setattr("layerlens.storage.files.os.replace", full)
    with pytest.raises(RunError, match="no space left"):
        ll.analyze(qwen, samples, out=tmp_path / "run", batch_tokens=1)
    assert not list((tmp_path / "run").rglob("*.tmp"))
    assert ll.open_run(tmp_path / "run").n_samples == 1
    monkeypatch.undo()
    ll.analyze(qwen, samples, out=tmp_path / "run", batch_tokens=1)
    whole = ll.analyze(qwen, samples, out=tmp_path / "whole", batch_tokens=1)
    assert whole.complete
    assert_same_run(tmp_path / "whole", tmp_path / "run")


def test_manifest_says_what_was_run(qwen: ll.LensModel, tmp_path: Path) -> None:
    ll.analyze(qwen, [ll.Sample(random_ids(5), 5)], generate=ll.Generation(3, seed=7), out=tmp_path / "run")
    manifest = ll.open_run(tmp_path / "run").manifest
    assert manifest.model.name == "tiny-random"
    assert manifest.model.fingerprint == qwen.fingerprint
    assert manifest.model.dtype == "float32"
    assert manifest.config.generate == SamplingSettings(max_new_tokens=3, temperature=1.0, top_p=1.0, seed=7)
    assert manifest.config.norm == "none"
    assert {"torch", "transformers", "layerlens"} <= manifest.versions.keys()


def test_a_removed_folder_of_samples_is_made_again(qwen: ll.LensModel, tmp_path: Path) -> None:
    samples = [ll.Sample(random_ids(5, seed), 2) for seed in range(2)]
    whole = ll.analyze(qwen, samples, out=tmp_path / "run")
    for file in (tmp_path / "run" / "samples").iterdir():
        file.unlink()
    (tmp_path / "run" / "samples").rmdir()
    assert ll.analyze(qwen, samples, out=tmp_path / "run").data.identical(whole.data)


def test_processes_are_noted_by_their_number(qwen: ll.LensModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in (3, 0):
        monkeypatch.setenv("RANK", str(number))
        run = ll.analyze(qwen, [ll.Sample([3, 4, 5])], metrics="entropy", out=tmp_path / "run")
        assert run.manifest.processes[str(number)].startswith("cpu (")
    assert sorted(ll.open_run(tmp_path / "run").manifest.processes) == ["0", "3"]
    assert list(ll.analyze(qwen, [ll.Sample([3, 4, 5])], metrics="entropy").manifest.processes) == ["0"]
