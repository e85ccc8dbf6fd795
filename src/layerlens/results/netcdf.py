"""Files of samples, netCDF as xarray writes it, read through h5py: several times as fast, and a damaged file raises and does no more."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import h5py
import numpy as np
import xarray as xr

COORDINATES = "coordinates"
MACHINERY = {"CLASS", "NAME", "DIMENSION_LIST", "REFERENCE_LIST", "_FillValue", "_Netcdf4Coordinates", "_Netcdf4Dimid", COORDINATES}
"""Attributes by which netCDF and xarray describe a variable's place, and which are none of its own."""
NOT_OF_ITS_DIMENSION = "_nc4_non_coord_"
"""What netCDF puts before the name of a variable that is called like a dimension which it does not label, as `sample` along tokens."""
NO_VARIABLE = b"This is a netCDF dimension but not a netCDF variable"


def read_netcdf(file: h5py.File, variables: Collection[str] | None = None) -> xr.Dataset:
    """A whole file as a data set in memory; of its data variables only the named ones if any are named."""
    listed = [file.attrs.get(COORDINATES, ""), *(part.attrs.get(COORDINATES, "") for part in file.values())]
    coords = {name for text in listed for name in _text(text).split()}
    there = variables_of(file)
    dims = {name: dims_of(file, part) for name, part in there.items()}
    coords |= {name for each in dims.values() for name in each}  # to xarray, whatever is called like a dimension is a coordinate
    wanted = [name for name in there if name in coords or variables is None or name in variables]
    arrays = {name: xr.Variable(dims[name], read_values(there[name]), attributes(there[name])) for name in wanted}
    data = {name: array for name, array in arrays.items() if name not in coords}
    return xr.Dataset(data, {name: array for name, array in arrays.items() if name in coords}, attributes(file))


def variables_of(file: h5py.File) -> dict[str, h5py.Dataset]:
    """All variables and coordinates by name, in the order in which they were written."""
    return {
        name.removeprefix(NOT_OF_ITS_DIMENSION): part
        for name, part in file.items()
        if not bytes(part.attrs.get("NAME", b"")).startswith(NO_VARIABLE)
    }


def dims_of(file: h5py.File, part: h5py.Dataset) -> tuple[str, ...]:
    """The dimensions of a variable, by name."""
    if "DIMENSION_LIST" in part.attrs:
        return tuple(file[scales[0]].name.lstrip("/") for scales in part.attrs["DIMENSION_LIST"])
    return (part.name.lstrip("/"),)  # the coordinate of its own dimension


def read_values(part: h5py.Dataset, rows: Any = ()) -> np.ndarray:
    """The values of a variable, or those that an index selects; texts as objects."""
    values = part[rows]
    if h5py.check_string_dtype(part.dtype) is None:
        return np.asarray(values)
    texts = np.empty(np.shape(values), dtype=object)
    texts[...] = [_text(text) for text in np.ravel(values)]
    return texts


def attributes(part: h5py.File | h5py.Dataset) -> dict[str, Any]:
    """The attributes that were given to a variable or a file."""
    return {name: _plain(value) for name, value in part.attrs.items() if name not in MACHINERY and name != "_NCProperties"}


def _plain(value: Any) -> Any:
    if isinstance(value, np.ndarray) and value.size == 1:
        value = value.ravel()[0]
    return _text(value) if isinstance(value, bytes | str) else value


def _text(value: Any) -> str:
    return value.decode("utf-8") if isinstance(value, bytes) else str(value)
