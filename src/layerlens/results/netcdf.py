"""Files of samples: netCDF 4 as xarray has it, through h5py. That is several times as fast, and a damaged file raises and does no more."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import xarray as xr
from xarray.conventions import cf_encoder, encode_dataset_coordinates

COORDINATES = "coordinates"
MACHINERY = {"CLASS", "NAME", "DIMENSION_LIST", "REFERENCE_LIST", "_FillValue", "_Netcdf4Coordinates", "_Netcdf4Dimid", COORDINATES}
"""Attributes by which netCDF and xarray describe a variable's place, and which are none of its own."""
NOT_OF_ITS_DIMENSION = "_nc4_non_coord_"
"""What netCDF puts before the name of a variable that is called like a dimension which it does not label, as `sample` along tokens."""
NO_VARIABLE = b"This is a netCDF dimension but not a netCDF variable"


def write_netcdf(data: xr.Dataset, path: Path) -> None:
    """Writes what `data.to_netcdf(path, engine="h5netcdf")` writes, several times as fast: that looks dimensions up time and again."""
    variables, attrs = cf_encoder(*encode_dataset_coordinates(data))
    sizes = {str(dim): size for dim, size in data.sizes.items()}
    ids = {dim: np.int32(number) for number, dim in enumerate(sizes)}
    labels = {name for name, each in variables.items() if each.dims == (name,)}
    with h5py.File(path, "w", track_order=True) as file:
        scales = {dim: _create(file, dim, (size,), ">f4") for dim, size in sizes.items() if dim not in labels}
        for dim, scale in scales.items():
            scale.attrs["_Netcdf4Dimid"] = ids[dim]
            scale.make_scale(NO_VARIABLE + b".%10d" % sizes[dim])
        parts = {}
        for name, each in variables.items():
            stored = NOT_OF_ITS_DIMENSION + name if name in ids and name not in labels else name
            parts[name] = _write_variable(file, stored, each)
            if each.dims:
                if each.shape[0] or name in labels:
                    parts[name].attrs["_Netcdf4Dimid"] = ids[each.dims[0]]
                parts[name].attrs["_Netcdf4Coordinates"] = np.array([ids[dim] for dim in each.dims])
            if name in labels:
                parts[name].make_scale(name)
                scales[name] = parts[name]
        for name, part in parts.items():
            for axis, dim in enumerate(() if name in labels else variables[name].dims):
                part.dims[axis].attach_scale(scales[dim])
        _write_attributes(file, attrs)
        file.attrs["_NCProperties"] = np.bytes_(f"version=2,hdf5={h5py.version.hdf5_version},h5py={h5py.__version__}")


def _write_variable(file: h5py.File, name: str, variable: xr.Variable) -> h5py.Dataset:
    attrs = dict(variable.attrs)
    values, fill = np.asarray(variable.values), attrs.pop("_FillValue", None)
    if values.dtype.kind in "OU":
        values = values.astype(h5py.string_dtype())
    part = _create(file, name, values.shape, values.dtype, data=values, fillvalue=fill)
    if fill is not None:
        attrs["_FillValue"] = values.dtype.type(fill)
    _write_attributes(part, attrs)
    return part


def _create(file: h5py.File, name: str, shape: tuple[int, ...], dtype: Any, **more: Any) -> h5py.Dataset:
    """A new array; netCDF has no dimension of length 0 but one that may grow."""
    longest = tuple(size or None for size in shape)
    return file.create_dataset(name, shape, dtype, maxshape=None if longest == shape else longest, track_order=True, **more)


def _write_attributes(part: h5py.File | h5py.Dataset, attrs: Mapping[str, Any]) -> None:
    """Attributes of a file or variable; netCDF has numbers in arrays of one."""
    for name, value in attrs.items():
        part.attrs[name] = value if isinstance(value, str) else np.atleast_1d(value)


def read_netcdf(file: h5py.File, variables: Collection[str] | None = None, there: Mapping[str, h5py.Dataset] | None = None) -> xr.Dataset:
    """A whole file as a data set in memory; of its data variables only the named ones if any are named.

    `there` is what `variables_of` gives of the file, if that is known.
    """
    there = variables_of(file) if there is None else there
    coords = {name for part in (file, *there.values()) for name in _text(_attribute(part, COORDINATES, "")).split()}
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
        if not bytes(_attribute(part, "NAME", b"")).startswith(NO_VARIABLE)
    }


def variable_of(file: h5py.File, name: str) -> h5py.Dataset:
    """One variable or coordinate, without listing the others, which takes longer than to read it. Raises KeyError if it is not there."""
    return file[NOT_OF_ITS_DIMENSION + name if NOT_OF_ITS_DIMENSION + name in file else name]


def dims_of(file: h5py.File, part: h5py.Dataset) -> tuple[str, ...]:
    """The dimensions of a variable, by name."""
    scales = _attribute(part, "DIMENSION_LIST", None)
    if scales is None:
        return (part.name.lstrip("/"),)[: part.ndim]  # the coordinate of its own dimension, or one number
    return tuple(h5py.h5r.get_name(scale[0], file.id).decode().lstrip("/") for scale in scales)


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
    attrs = part.attrs
    return {name: _plain(attrs[name]) for name in attrs if name not in MACHINERY and name != "_NCProperties"}


def _attribute(part: h5py.File | h5py.Dataset, name: str, otherwise: Any) -> Any:
    attrs = part.attrs
    if name not in attrs:  # asked first: in HDF5 an error costs several times as much
        return otherwise
    return attrs[name]


def _plain(value: Any) -> Any:
    if isinstance(value, np.ndarray) and value.size == 1:
        value = value.ravel()[0]
    return _text(value) if isinstance(value, bytes | str) else value


def _text(value: Any) -> str:
    return value.decode("utf-8") if isinstance(value, bytes) else str(value)
