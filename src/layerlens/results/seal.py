"""What a sample's file says of itself, so that damage and mistaken places are seen: its run, its number, and a digest of everything in it.

HDF5's own checksums see flipped bits at best, but neither two files swapped, nor one of another run, nor numbers written over.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Hashable, Iterable, Mapping
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import xarray as xr

from layerlens.errors import RunError
from layerlens.results.netcdf import attributes, dims_of, read_values, variable_of
from layerlens.results.schema import DIMS

RUN, NUMBER, DIGESTS = "run", "number", "digests"
"""Attributes of a sealed data set: the identity of its run, the sample's number from 0, and a JSON object of digests by name."""
ATTRS = ""
"""The name under which the digest of all other attributes stands."""


class Damage(RunError):
    """A file is not what its run wrote in its place."""


class DamagedFile(RunError):
    """The error that names a damaged file and the next step."""

    def __init__(self, message: str, file: Path):
        super().__init__(message)
        self.file = file


def digest(name: str, values: np.ndarray, *described: object) -> str:
    """BLAKE2b, 64 bits, of an array with its name and what describes it. All NaN count alike, since netCDF does not tell them apart."""
    state = hashlib.blake2b(f"{name} {values.shape} {described}".encode(), digest_size=8)
    if values.dtype.kind in "OUST":
        state.update(json.dumps([str(text) for text in values.ravel()]).encode())
    else:
        if values.dtype.kind == "f" and (unknown := np.isnan(values)).any():
            values = np.where(unknown, np.array(np.nan, values.dtype), values)
        little = values.dtype.newbyteorder("<")
        state.update(little.str.encode())
        state.update(np.ascontiguousarray(values, little).tobytes())
    return state.hexdigest()


def sealed(sample: xr.Dataset, run: str, number: int) -> xr.Dataset:
    """The data set with the attributes that say what it is."""
    attrs = {**sample.attrs, RUN: run, NUMBER: number}
    return sample.assign_attrs({**attrs, DIGESTS: json.dumps({ATTRS: _digest_of_attrs(attrs), **_digests_of(sample)})})


def unsealed(sample: xr.Dataset, run: str, number: int) -> xr.Dataset:
    """The data set as `sealed` got it, after its place and the digest of each of its variables are found right; older files have none.

    Raises Damage, saying in a few words what is wrong.
    """
    require_place(sample.attrs, run, number)
    if DIGESTS in sample.attrs:
        expected = _read_digests(sample.attrs[DIGESTS])
        found = _digests_of(sample)
        found[ATTRS] = _digest_of_attrs({name: value for name, value in sample.attrs.items() if name != DIGESTS})
        wrong = next((name for name, each in found.items() if expected.get(name) != each), None)
        if wrong is not None:
            raise Damage(f"its {wrong or 'attributes'} is not what was written")
    elif "sample_index" in sample.coords and sample["sample_index"].values.tolist() != [number]:
        raise Damage(f"it is sample {sample['sample_index'].values.tolist()[0]}, in the place of {number}")
    plain = sample.copy()
    plain.attrs = {name: value for name, value in sample.attrs.items() if name not in (RUN, NUMBER, DIGESTS)}
    return plain


def require_place(attrs: Mapping[str, Any], run: str, number: int) -> None:
    """Raises Damage if attributes say another run or sample; those of an older version, in a folder of an older version, say neither."""
    if run and attrs.get(RUN) != run:
        raise Damage("it belongs to another run" if RUN in attrs else "it does not say which run it belongs to")
    if NUMBER in attrs and int(attrs[NUMBER]) != number:
        raise Damage(f"it is sample {int(attrs[NUMBER])}, in the place of {number}")


def require_all(attrs: Mapping[str, Any], names: Iterable[Hashable]) -> None:
    """Raises Damage unless every variable that has a digest is among the names."""
    lacking = sorted(_read_digests(attrs[DIGESTS]).keys() - {ATTRS, *map(str, names)}) if DIGESTS in attrs else []
    if lacking:
        raise Damage(f"it lacks {', '.join(lacking)}")


def _read_digests(text: Any) -> dict[str, str]:
    """The digests by name. Raises Damage if the attribute does not hold them."""
    try:
        found = json.loads(str(text))
    except ValueError:
        found = None
    if not isinstance(found, dict):
        raise Damage("its digests cannot be read")
    return found


def read_sealed(file: h5py.File, name: str) -> np.ndarray:
    """The values of one variable of a sealed file. Raises Damage unless it has its digest."""
    part = variable_of(file, name)
    values = read_values(part)
    if _read_digests(file.attrs[DIGESTS]).get(name) != digest(
        name, values, dims_of(file, part), _plain(attributes(part)), name not in DIMS
    ):
        raise Damage(f"its {name} is not what was written")
    return values


def _digests_of(sample: xr.Dataset) -> dict[str, str]:
    """The digest of each variable, with its dimensions and attributes, and whether it is a coordinate."""
    return {
        str(name): digest(str(name), np.asarray(each.values), tuple(map(str, each.dims)), _plain(each.attrs), name in sample.coords)
        for name, each in sample.variables.items()
    }


def _digest_of_attrs(attrs: Mapping[str, Any]) -> str:
    return hashlib.blake2b(_plain(attrs).encode(), digest_size=8).hexdigest()


def _plain(attrs: Mapping[str, Any]) -> str:
    """Attributes as one text, which does not depend on the types that a file gives them."""
    return json.dumps({name: value.item() if isinstance(value, np.generic) else value for name, value in attrs.items()}, sort_keys=True)
