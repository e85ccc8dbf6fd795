"""The layout of a result: the data set of one sample, and how samples are joined into one data set."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import xarray as xr

from layerlens.errors import RunError
from layerlens.prompts.sample import Sample
from layerlens.storage.manifest import AnalysisConfig
from layerlens.types import METRIC_INFO

DIMS: dict[str, tuple[str, ...]] = {
    "entropy": ("token", "layer", "site"),
    "logit_sd": ("token", "layer", "site"),
    "logp_next": ("token", "layer", "site"),
    "final_logp_next": ("token",),
    "kl_to_final": ("token", "layer", "site"),
    "kl_from_layer": ("token", "layer", "site"),
    "js_to_final": ("token", "layer", "site"),
    "kl_from_final": ("token", "layer", "site"),
    "rank_next": ("token", "layer", "site"),
    "renyi_2": ("token", "layer", "site"),
    "agrees": ("token", "layer", "site"),
    "top_ids": ("token", "layer", "site", "rank"),
    "top_probs": ("token", "layer", "site", "rank"),
    "stream_cosine": ("token", "layer", "module"),
    "state_norm": ("token", "layer", "site"),
    "similarity": ("sample", "layer", "layer_to"),
    "cka": ("sample", "layer", "layer_to"),
}
"""Dimensions of every variable that a run may hold."""


ROW_DIMS = ("token", "text_token", "sample", "named_token")
"""Dimensions along which samples are joined: decoded rows, tokens of the whole texts, samples, and the tokens that each sample names."""


@dataclass(frozen=True)
class SampleResult:
    """Everything that is kept of one sample. Arrays have no padding.

    Attributes:
        index: the sample's number in the run, from 0.
        sample: the text, response included.
        rows: positions of the decoded rows, in order.
        token_text: the text of the token at each decoded row.
        layers, sites, modules: labels of the dimensions of `values`.
        text: the whole text, in words.
        values: arrays by metric, with the dimensions that DIMS gives.
        weight: how many rows of the text each decoded row stands for; None if all rows were decoded.
        reference_start: the first position that the paper's code counts; -1 if the prompt names no assistant.
        response_text: the response, in words.
        token_names: the text of every token id in the whole text and among `top_ids`; empty without a tokenizer.
    """

    index: int
    sample: Sample
    rows: np.ndarray
    token_text: Sequence[str]
    layers: Sequence[int]
    sites: Sequence[str]
    modules: Sequence[str] = ()
    text: str = ""
    values: Mapping[str, np.ndarray] = field(default_factory=dict)
    weight: np.ndarray | None = None
    reference_start: int = -1
    response_text: str = ""
    token_names: Mapping[int, str] = field(default_factory=dict)


def sample_dataset(result: SampleResult, attrs: Mapping[str, Any]) -> xr.Dataset:
    """One sample as a labelled data set, with units and long names on every variable."""
    sample, rows = result.sample, np.asarray(result.rows)
    token_ids = np.asarray(sample.token_ids, np.int32)
    coords: dict[str, Any] = {
        "sample": ("token", np.full(len(rows), result.index, np.int32)),
        "position": ("token", rows.astype(np.int32)),
        "token_id": ("token", token_ids[rows]),
        "token_text": ("token", np.array([storable(text) for text in result.token_text], dtype=object)),
        "in_response": ("token", sample.in_response[rows].astype(np.int8)),
        "segment": ("token", sample.segment[rows]),
        "sample_index": ("sample", np.array([result.index], np.int32)),
        "sample_id": ("sample", np.array([storable(sample.name)], dtype=object)),
        "sample_text": ("sample", np.array([storable(result.text)], dtype=object)),
        "response_text": ("sample", np.array([storable(result.response_text)], dtype=object)),
        "ground_truth": ("sample", np.array([storable(sample.ground_truth or "")], dtype=object)),
        "correct": ("sample", np.array([-1 if sample.correct is None else sample.correct], np.int8)),
        "response_start": ("sample", np.array([sample.response_start], np.int32)),
        "reference_start": ("sample", np.array([result.reference_start], np.int32)),
        "text_sample": ("text_token", np.full(len(token_ids), result.index, np.int32)),
        "text_token_id": ("text_token", token_ids),
        "layer": np.asarray(result.layers, np.int32),
        "site": np.asarray(result.sites, dtype=object),
    }
    if result.token_names:
        coords["named_token_id"] = ("named_token", np.array(list(result.token_names), np.int32))
        coords["named_token_text"] = ("named_token", np.array([storable(text) for text in result.token_names.values()], dtype=object))
    if result.weight is not None:
        coords["weight"] = ("token", np.asarray(result.weight, np.float64))
    if "stream_cosine" in result.values:
        coords["module"] = np.asarray(result.modules, dtype=object)
    if "similarity" in result.values:
        coords["layer_to"] = coords["layer"]
    variables = {}
    for name, values in result.values.items():
        long_name, unit = METRIC_INFO[name]
        variables[name] = (DIMS[name], values, {"long_name": long_name, "units": unit})
    return xr.Dataset(variables, coords, dict(attrs))


def upgraded(sample: xr.Dataset) -> xr.Dataset:
    """A sample's data set as `sample_dataset` makes it now, from one of format 1 or without segments.

    Without segments every response row counts as answer. Format 1 kept the whole text's token ids as a text of numbers, and only when
    rows were drawn. When it kept none and decoded response rows alone, the prompt's token ids are not known: the data set then has no
    `text_token_id`.
    """
    if "text_token_id" not in sample.coords:
        sample = _with_text(sample)
    return sample if "segment" in sample.coords else _with_segment(sample)


def _with_text(sample: xr.Dataset) -> xr.Dataset:
    index = sample["sample_index"].values[:1]
    token_ids = None
    if "sample_token_ids" in sample.coords:
        token_ids = np.array(str(sample["sample_token_ids"].values[0]).split(), np.int32)
        sample = sample.drop_vars("sample_token_ids")
    else:
        response = np.flatnonzero(sample["in_response"].values)
        whole = sample.attrs.get("rows") == "all"
        end = sample.sizes["token"] if whole else 0
        start = int(sample["position"].values[response[0]]) + 1 if len(response) else end
        # a text that is all response: its first row predicts the second token, and the token at position 0 is predicted by none
        sample = sample.assign_coords(response_start=("sample", np.array([start], np.int32)))
        token_ids = sample["token_id"].values.astype(np.int32) if whole else None
    if token_ids is None:
        return sample
    return sample.assign_coords(
        text_sample=("text_token", np.repeat(index, len(token_ids)).astype(np.int32)), text_token_id=("text_token", token_ids)
    )


def _with_segment(sample: xr.Dataset) -> xr.Dataset:
    segment = np.where(sample["in_response"].values.astype(bool), "answer", "prompt").astype(object)
    if "text_token_id" in sample.coords:
        segment[sample["position"].values == sample.sizes["text_token"] - 1] = ""
    return sample.assign_coords(segment=("token", segment))


def require_labels(variables: Mapping[Any, Any], config: AnalysisConfig) -> None:
    """Raises RunError unless a sample holds the coordinates that every sample has, at the layers and sites of the configuration.

    `variables` has the arrays by name, in memory or in an open file.
    """
    lacking = [name for name in ("sample", "position", "token_id", "token_text", "in_response", "layer", "site") if name not in variables]
    if lacking:
        raise RunError(f"it lacks {', '.join(lacking)}")
    layers = [int(layer) for layer in variables["layer"][:]]
    sites = [site.decode() if isinstance(site, bytes) else str(getattr(site, "values", site)) for site in variables["site"][:]]
    for what, found, wanted in (("layers", layers, list(config.layers)), ("sites", sites, list(config.sites))):
        if wanted and found != wanted:
            raise RunError(f"it has {what} {', '.join(map(str, found))}, the run {', '.join(map(str, wanted))}")


def storable(text: str) -> str:
    """The text with what netCDF cannot hold replaced: NUL by its visible sign, half a surrogate pair by a question mark."""
    return text.replace("\0", "\u2400").encode("utf-8", "replace").decode("utf-8")


def join_samples(samples: Sequence[xr.Dataset]) -> xr.Dataset:
    """Samples one after another: rows along `token`, whole texts along `text_token`, matrices along `sample`.

    A variable that some samples lack, since an earlier version wrote them, is left out.
    """
    first = samples[0]
    shared = [str(name) for name in first.data_vars if all(name in sample for sample in samples)]

    def joined(name: str) -> tuple[tuple[str, ...], np.ndarray, dict[str, Any]]:
        variable = first[name].variable
        axis = next((variable.dims.index(dim) for dim in ROW_DIMS if dim in variable.dims), None)
        values = variable.values if axis is None else np.concatenate([s[name].values for s in samples], axis=axis)
        return tuple(map(str, variable.dims)), values, dict(variable.attrs)

    return xr.Dataset(
        {name: joined(name) for name in shared},
        # files of an earlier version lack some coordinates
        {str(name): joined(str(name)) for name in first.coords if all(name in sample.coords for sample in samples)},
        first.attrs,
    )
