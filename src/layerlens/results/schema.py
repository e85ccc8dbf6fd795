"""The shape of a result: what one sample leaves behind, and how samples are joined into one data set."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import xarray as xr

from layerlens.types import METRIC_INFO

DIMS: dict[str, tuple[str, ...]] = {
    "entropy": ("token", "layer", "site"),
    "logp_next": ("token", "layer", "site"),
    "kl_to_final": ("token", "layer", "site"),
    "kl_from_layer": ("token", "layer", "site"),
    "agrees": ("token", "layer", "site"),
    "top_ids": ("token", "layer", "site", "rank"),
    "top_probs": ("token", "layer", "site", "rank"),
    "stream_cosine": ("token", "layer", "module"),
    "similarity": ("sample", "layer", "layer_to"),
    "cka": ("sample", "layer", "layer_to"),
}
"""Dimensions of every variable that a run may hold."""


@dataclass(frozen=True)
class SampleResult:
    """All that is kept of one sample. Arrays have no padding; rows are the tokens that were read."""

    index: int
    id: str
    position: np.ndarray
    token_id: np.ndarray
    token_text: Sequence[str]
    in_response: np.ndarray
    layers: Sequence[int]
    sites: Sequence[str]
    modules: Sequence[str] = ()
    text: str = ""
    ground_truth: str = ""
    values: Mapping[str, np.ndarray] = field(default_factory=dict)
    weight: np.ndarray | None = None
    """Rows that each row stands for, where not all were decoded; then `token_ids` and `response_start` are kept of the whole text."""
    token_ids: Sequence[int] = ()
    response_start: int = 0


def sample_dataset(result: SampleResult, attrs: Mapping[str, Any]) -> xr.Dataset:
    """One sample as a labelled data set, with units and long names on every variable."""
    n = len(result.position)
    coords: dict[str, Any] = {
        "sample": ("token", np.full(n, result.index, np.int32)),
        "position": ("token", np.asarray(result.position, np.int32)),
        "token_id": ("token", np.asarray(result.token_id, np.int32)),
        "token_text": ("token", np.array([storable(text) for text in result.token_text], dtype=object)),
        "in_response": ("token", np.asarray(result.in_response, np.int8)),
        "sample_index": ("sample", np.array([result.index], np.int32)),
        "sample_id": ("sample", np.array([storable(result.id)], dtype=object)),
        "sample_text": ("sample", np.array([storable(result.text)], dtype=object)),
        "ground_truth": ("sample", np.array([storable(result.ground_truth)], dtype=object)),
        "layer": np.asarray(result.layers, np.int32),
        "site": np.asarray(result.sites, dtype=object),
    }
    if result.weight is not None:
        coords["weight"] = ("token", np.asarray(result.weight, np.float64))
        coords["response_start"] = ("sample", np.array([result.response_start], np.int32))
        coords["sample_token_ids"] = ("sample", np.array([" ".join(map(str, result.token_ids))], dtype=object))
    if "stream_cosine" in result.values:
        coords["module"] = np.asarray(result.modules, dtype=object)
    if "similarity" in result.values:
        coords["layer_to"] = coords["layer"]
    variables = {}
    for name, values in result.values.items():
        long_name, unit = METRIC_INFO[name]
        variables[name] = (DIMS[name], values, {"long_name": long_name, "units": unit})
    return xr.Dataset(variables, coords, dict(attrs))


def storable(text: str) -> str:
    """A text that a netCDF file can hold: NUL becomes its visible sign, half a surrogate pair a question mark."""
    return text.replace("\0", "\u2400").encode("utf-8", "replace").decode("utf-8")


def join_samples(samples: Sequence[xr.Dataset]) -> xr.Dataset:
    """Samples one after another: rows along `token`, matrices along `sample`."""
    first = samples[0]

    def joined(name: str) -> tuple[tuple[str, ...], np.ndarray, dict[str, Any]]:
        variable = first[name].variable
        axis = next((variable.dims.index(d) for d in ("token", "sample") if d in variable.dims), None)
        values = variable.values if axis is None else np.concatenate([s[name].values for s in samples], axis=axis)
        return tuple(map(str, variable.dims)), values, dict(variable.attrs)

    return xr.Dataset(
        {str(name): joined(str(name)) for name in first.data_vars},
        {str(name): joined(str(name)) for name in first.coords},
        first.attrs,
    )
