"""Files are written and read as xarray writes and reads them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import xarray as xr

import layerlens as ll
from layerlens.results.netcdf import read_netcdf, write_netcdf
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


def _objects(path: Path) -> dict[str, Any]:
    """Everything in a file but which program wrote it: each array's layout and values, and its attributes with their types."""
    with h5py.File(path) as file:

        def plain(value: Any) -> Any:
            if not isinstance(value, np.ndarray):
                return value
            if value.dtype.names:  # where a scale is used
                return [(file[used].name, int(axis)) for used, axis in value]
            return [[file[scale].name for scale in each] if isinstance(each, np.ndarray) else each for each in value.tolist()]

        def described(part: Any) -> dict[str, Any]:
            kinds = {name: part.attrs.get_id(name) for name in part.attrs if name != "_NCProperties"}
            return {name: (kind.dtype, kind.shape, plain(part.attrs[name])) for name, kind in kinds.items()}

        layouts = {name: (part.dtype, part.shape, part.maxshape, str(part.fillvalue)) for name, part in file.items()}
        values = {name: part[()].tolist() for name, part in file.items() if part.dtype != ">f4"}  # a dimension alone has none
        return {"layouts": layouts, "values": repr(values), "attributes": repr(described(file))} | {
            name: dict(sorted((name, repr(each)) for name, each in described(part).items())) for name, part in file.items()
        }


def test_a_data_set_is_written_as_xarray_writes_it(tmp_path: Path) -> None:
    texts = np.array(["é", "", "\U0001f600"], dtype=object)
    data = xr.Dataset(
        {
            "entropy": (("token", "layer"), np.array([[1.5, np.nan]] * 3, np.float32), {"units": "nats", "long_name": "entropy"}),
            "agrees": (("token", "layer"), np.eye(3, 2, dtype=np.int8)),
            "similarity": (("layer", "layer_to"), np.eye(2)),
            "nothing": (("none", "layer"), np.zeros((0, 2))),
            "alone": ((), np.float64(3)),
        },
        {
            "token_text": ("token", texts),
            "sample": ("token", np.zeros(3, np.int32)),  # called like the next one's dimension
            "sample_id": ("sample", np.array(["p0"])),
            "layer": np.arange(1, 3),
            "layer_to": np.arange(1, 3),
            "site": ("site_number", ["ffn_in", "ffn_out"]),
        },
        {"model": "tiny", "temperature": 1.0, "number": 3},
    )
    data.to_netcdf(tmp_path / "xarray.nc", engine="h5netcdf")
    write_netcdf(data, tmp_path / "ours.nc")
    assert _objects(tmp_path / "ours.nc") == _objects(tmp_path / "xarray.nc")
    assert list(_objects(tmp_path / "ours.nc")) == list(_objects(tmp_path / "xarray.nc")), "in the same order"
    with h5py.File(tmp_path / "ours.nc") as raw, xr.open_dataset(tmp_path / "ours.nc", engine="h5netcdf") as opened:
        xr.testing.assert_identical(opened.load(), read_netcdf(raw))
