"""Damage to the files of a run is seen, named, set aside and made again; no number of a damaged file is ever given out."""

from __future__ import annotations

import random
import shutil
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pytest
import xarray as xr

import layerlens as ll
from layerlens.errors import RunError
from layerlens.results.check import check_run, is_run
from layerlens.results.folder import RunFolder
from tests.support.kills import assert_same_run
from tests.support.tiny_models import random_ids

SAMPLES = [ll.Sample(random_ids(5 + i % 2, i), 2, id=f"s{i}") for i in range(3)]
FORMATS = Path(__file__).parents[1] / "formats"


@pytest.fixture(scope="module")
def whole(qwen: ll.LensModel, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("seal") / "run"
    ll.analyze(qwen, SAMPLES, out=out, metrics=("entropy", "similarity"))
    return out


@pytest.fixture
def run(whole: Path, tmp_path: Path) -> Path:
    shutil.copytree(whole, tmp_path / "run")
    return tmp_path / "run"


def _file(run: Path, number: int) -> Path:
    return run / "samples" / f"{number:06d}.nc"


def _swap(run: Path) -> None:
    first, second = _file(run, 0), _file(run, 2)
    content = first.read_bytes()
    first.write_bytes(second.read_bytes())
    second.write_bytes(content)


def _edit(change: Callable[[h5py.File], object]) -> Callable[[Path], None]:
    def edit(run: Path) -> None:
        with h5py.File(_file(run, 0), "r+") as file:
            change(file)

    return edit


def _put(name: str, value: float) -> Callable[[Path], None]:
    return _edit(lambda file: file[name].__setitem__(Ellipsis, value))


DAMAGE: dict[str, Callable[[Path], object]] = {
    "it is sample 2, in the place of 0": _swap,
    "its entropy is not what was written": _put("entropy", np.nan),
    "its similarity is not what was written": _put("similarity", 0.5),
    "its attributes is not what was written": _edit(lambda file: file.attrs.__setitem__("norm", "final")),
    "it lacks entropy": _edit(lambda file: file.__delitem__("entropy")),
    "it lacks position": _edit(lambda file: file.__delitem__("position")),
    "its digests cannot be read": _edit(lambda file: file.attrs.__setitem__("digests", "{")),
    "it does not say which run it belongs to": _edit(lambda file: file.attrs.__delitem__("run")),
    "file signature not found": lambda run: _file(run, 0).write_bytes(b"nonsense"),
}


@pytest.mark.parametrize("why", DAMAGE)
def test_damage_is_named_set_aside_and_made_again(why: str, qwen: ll.LensModel, whole: Path, run: Path) -> None:
    DAMAGE[why](run)
    found = check_run(run)
    assert not found.ok
    assert why in found.damaged["000000.nc"]
    assert found.finished == 3 - len(found.damaged)
    with pytest.raises(RunError, match=r"000000\.nc is damaged .* sets it aside and restores it"):
        RunFolder(run).read(0)
    with pytest.warns(UserWarning, match=r"set aside as 00000\d\.nc\.damaged, and made again"):
        ll.analyze(qwen, SAMPLES, out=run, metrics=("entropy", "similarity"))
    assert check_run(run).damaged == {}
    assert set(check_run(run).strange) == {f"{name}.damaged" for name in found.damaged}
    assert_same_run(whole, run)


def test_a_sample_of_another_run_is_set_aside(qwen: ll.LensModel, whole: Path, run: Path, tmp_path: Path) -> None:
    other = ll.analyze(qwen, SAMPLES, out=tmp_path / "other", metrics=("entropy", "similarity"), norm="final")
    assert other.path is not None
    shutil.copy(_file(other.path, 1), _file(run, 1))
    with pytest.raises(RunError, match=r"000001\.nc is damaged \(it belongs to another run\)"):
        RunFolder(run).check(1)
    assert check_run(run).damaged == {"000001.nc": "it belongs to another run"}
    with pytest.warns(UserWarning, match="it belongs to another run: set aside"):
        ll.analyze(qwen, SAMPLES, out=run, metrics=("entropy", "similarity"))
    assert_same_run(whole, run)


def test_a_flipped_bit_is_seen_or_changes_nothing(whole: Path, run: Path) -> None:
    """Bits in the free space of an HDF5 file change nothing; any other makes the file unreadable or its digests wrong."""
    chosen, file = random.Random(0), _file(run, 1)
    good, content = RunFolder(whole).read(1), _file(whole, 1).read_bytes()
    told = 0
    for _ in range(60):
        place = chosen.randrange(len(content))
        flipped = bytearray(content)
        flipped[place] ^= 1 << chosen.randrange(8)
        file.write_bytes(flipped)
        try:
            found = RunFolder(run).read(1)
        except RunError:
            told += 1
        else:
            xr.testing.assert_identical(found, good)
    assert told > 0


def test_every_flipped_bit_of_the_numbers_is_seen(whole: Path, run: Path) -> None:
    with h5py.File(_file(whole, 1)) as file:
        start, length = file["entropy"].id.get_offset(), file["entropy"].id.get_storage_size()
    content = _file(whole, 1).read_bytes()
    for place in range(start, start + length, max(1, length // 40)):
        flipped = bytearray(content)
        flipped[place] ^= 1 << place % 8
        _file(run, 1).write_bytes(flipped)
        with pytest.raises(RunError, match="its entropy is not what was written"):
            RunFolder(run).read(1, ["entropy"])


def test_strange_files_are_named_and_read_by_nobody(run: Path) -> None:
    for name in ("1.nc", "00000a.nc", "000099.nc", "0 (copy).nc", "notes.txt"):
        (run / "samples" / name).write_bytes(b"x")
    assert ll.open_run(run).n_samples == 3
    assert check_run(run).strange == ("0 (copy).nc", "00000a.nc", "000099.nc", "1.nc", "notes.txt")
    assert check_run(run).ok


def test_files_of_an_earlier_version_have_no_digest_and_are_read() -> None:
    found = check_run(FORMATS / "format-1" / "run")
    assert (found.finished, found.undigested, found.damaged) == (2, 2, {})
    assert is_run(FORMATS / "format-1" / "run")
    assert not is_run(FORMATS)


def test_files_of_an_earlier_version_in_a_wrong_place_are_told(tmp_path: Path) -> None:
    shutil.copytree(FORMATS / "format-1" / "run", tmp_path / "run")
    shutil.copy(_file(tmp_path / "run", 0), _file(tmp_path / "run", 1))
    assert check_run(tmp_path / "run").damaged == {"000001.nc": "it is sample 0, in the place of 1"}


def test_damaged_means_are_made_again_from_the_rows(qwen: ll.LensModel, whole: Path, run: Path) -> None:
    first, second = (run / "means" / f"{number:06d}.safetensors" for number in (0, 2))
    content = bytearray(first.read_bytes())
    content[-3] ^= 4
    first.write_bytes(content)
    second.unlink()
    assert list(check_run(run).damaged) == ["000000.safetensors"]
    rows = _file(run, 0).stat().st_mtime_ns
    with pytest.warns(UserWarning, match=r"set aside as 000000\.safetensors\.damaged"):
        ll.analyze(qwen, SAMPLES, out=run, metrics=("entropy", "similarity"))
    assert _file(run, 0).stat().st_mtime_ns == rows
    assert_same_run(whole, run)
