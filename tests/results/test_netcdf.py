"""Files are read as xarray reads them."""

from __future__ import annotations

from pathlib import Path

import h5py
import pytest
import xarray as xr

import layerlens as ll
from layerlens.results.netcdf import read_netcdf
from tests.support.tiny_models import random_ids

OLD = sorted((Path(__file__).parents[1] / "formats").glob("format-1/run*/samples/*.nc"))


def _same(file: Path) -> None:
    with xr.open_dataset(file, engine="h5netcdf") as opened, h5py.File(file) as raw:
        xr.testing.assert_identical(opened.load(), read_netcdf(raw))
        assert list(opened.variables) == list(read_netcdf(raw).variables)
        one = opened.drop_vars(set(opened.data_vars) - {"entropy"}).load()
        xr.testing.assert_identical(one, read_netcdf(raw, ["entropy"]))


@pytest.mark.parametrize("file", OLD, ids=lambda file: f"{file.parts[-3]}-{file.stem}")
def test_files_of_format_1_are_read_as_xarray_reads_them(file: Path) -> None:
    _same(file)


def test_a_sample_is_read_as_xarray_reads_it(qwen: ll.LensModel, tmp_path: Path) -> None:
    sample = ll.Sample(random_ids(6), 2, id="é", ground_truth="4 2")
    ll.analyze(qwen, [sample], out=tmp_path / "run", top_k=2, kl_from_layer=1, tokens_per_sample=2)
    _same(tmp_path / "run" / "samples" / "000000.nc")
