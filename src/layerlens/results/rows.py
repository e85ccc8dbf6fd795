"""Which rows of a data set a mean counts, what each of them stands for, and their sums by sample."""

from __future__ import annotations

import hashlib
from collections.abc import Hashable, Sequence
from typing import get_args

import numpy as np
import xarray as xr
from jaxtyping import Bool, Float, Int

from layerlens.errors import SelectionError
from layerlens.types import SEGMENTS, Rows, Segment, Weighting

Array = np.ndarray


def row_mask(data: xr.Dataset, rows: Rows = "response", drop_first: int = 0, segment: Segment | None = None) -> Bool[Array, " tokens"]:
    """Which rows a mean counts, along `token`; arguments as in `Run.bootstrap`.

    Raises SelectionError for an unknown choice of rows, or a segment that no row has.
    """
    if drop_first < 0:
        raise SelectionError(f"drop_first must be 0 or more, got {drop_first}")
    if rows not in get_args(Rows):
        raise SelectionError(f"rows must be 'response', 'all' or 'reference', got {rows!r}")
    if segment is None and rows == "reference":
        return _reference_rows(data, drop_first)
    if segment is None and rows == "response" and data.attrs.get("rows") == "reference":
        raise SelectionError(
            "this run holds the rows of the paper's code, without each sample's first response row: ask for rows='reference'"
        )
    response = data["in_response"].values.astype(bool)
    keep = np.ones_like(response) if rows == "all" else response.copy()
    if segment is not None:
        keep = _segment_mask(data, segment)
    if drop_first:
        keep[_response_place(data, response) < drop_first] = False
    return keep


def row_weights(data: xr.Dataset) -> Float[Array, " tokens"]:
    """How many rows of the text each row stands for, along `token`: more than 1 if only some rows were drawn."""
    return data["weight"].values if "weight" in data.coords else np.ones(data.sizes["token"])


def problem_numbers(data: xr.Dataset) -> Int[Array, " samples"]:
    """The number of each sample's problem, from 0 in the order in which they come: samples with the same prompt answer one problem.

    A text without a prompt, or whose prompt is not known (runs of format 1), is a problem of its own. If all samples have the same
    prompt, so is each of them: an interval is then over answers to that one prompt.
    """
    samples = data.sizes["sample"]
    if "text_token_id" not in data.coords:
        return np.arange(samples)
    token_ids, starts = data["text_token_id"].values, data["response_start"].values
    firsts = np.searchsorted(data["text_sample"].values, data["sample_index"].values)
    prompts = [token_ids[first : first + start].tobytes() or index for index, (first, start) in enumerate(zip(firsts, starts, strict=True))]
    return numbered_problems(prompts)


def numbered_problems(prompts: Sequence[Hashable]) -> Int[Array, " samples"]:
    """The problems of samples by their prompts, as `problem_numbers` describes it; a text without a prompt has a value of its own."""
    numbers = {prompt: number for number, prompt in enumerate(dict.fromkeys(prompts))}
    return np.arange(len(prompts)) if len(numbers) == 1 else np.array([numbers[prompt] for prompt in prompts])


def sums_by_sample(
    data: xr.Dataset, values: xr.DataArray, keep: Bool[Array, " tokens"], over: Weighting
) -> tuple[Float[Array, "samples *rest"], Float[Array, "samples *rest"]]:
    """What `bootstrap_means` takes: each sample's sum and count over the rows to keep, NaN left out.

    With `over="sample"` they are the sample's mean and 1. A value per sample (such as a matrix of similarities) is weighted by the
    sample's rows, or by 1.

    Args:
        values: `token` or `sample` in front.
    """
    if over not in ("sample", "token"):
        raise SelectionError(f"over must be 'sample' or 'token', got {over!r}")
    array = values.values.astype(np.float64)
    column = (-1, *[1] * (array.ndim - 1))
    known, weight, firsts = ~np.isnan(array), row_weights(data), _first_rows(data)
    if "token" not in values.dims:
        tokens = np.add.reduceat(keep * weight, firsts) if over == "token" else np.ones(data.sizes["sample"])
        counts = known * tokens.reshape(column)
        return np.where(known, array, 0.0) * counts, counts
    counts = np.add.reduceat((keep.reshape(column) & known) * weight.reshape(column), firsts, axis=0)
    sums = np.add.reduceat(np.where(keep.reshape(column) & known, array, 0.0) * weight.reshape(column), firsts, axis=0)
    if over == "token":
        return sums, counts
    with np.errstate(invalid="ignore"):
        return np.where(counts > 0, sums / counts, 0.0), (counts > 0).astype(np.float64)


def row_digest(data: xr.Dataset) -> str:
    """Of positions, token ids and which rows are the response's: alike for the same rows of the same text."""
    state = hashlib.blake2b(digest_size=16)
    for name in ("position", "token_id", "in_response"):
        state.update(data[name].values.astype(np.int64).tobytes())
    return state.hexdigest()


def _reference_rows(data: xr.Dataset, drop_first: int) -> Bool[Array, " tokens"]:
    """The rows that the paper's code takes, from each sample's `reference_start` to its last position."""
    if drop_first:
        raise SelectionError("drop_first counts response rows; the rows of rows='reference' begin where they begin in the paper's code")
    held = data.attrs.get("rows")
    if "reference_start" not in data.coords or (data["reference_start"].values < 0).any():
        raise SelectionError("rows='reference' begin after the prompt's 'assistant', which this run does not know of every sample")
    if held != "reference" and (held != "all" or (row_weights(data) != 1).any()):
        raise SelectionError("rows='reference' keep each sample's last position, which was not decoded: analyse with rows='reference'")
    starts = np.repeat(data["reference_start"].values, np.diff([*_first_rows(data), data.sizes["token"]]))
    return data["position"].values >= starts


def _segment_mask(data: xr.Dataset, segment: Segment) -> Bool[Array, " tokens"]:
    """Which rows predict a token of the segment."""
    if segment not in SEGMENTS:
        raise SelectionError(f"segment must be one of {', '.join(SEGMENTS)}, got {segment!r}")
    there = data["segment"].values
    if segment not in there:
        held = [name for name in SEGMENTS if name in there]
        marks = data.attrs.get("thinking_marks")
        hint = f"; no response thinks between {marks}: name its marks with thinking_marks=" if segment == "thinking" and marks else ""
        raise SelectionError(f"the run of {data.attrs['model']} has no {segment} rows, only {' and '.join(held) or 'none'}{hint}")
    mask: Bool[Array, " tokens"] = there == segment
    return mask


def _response_place(data: xr.Dataset, response: Bool[Array, " tokens"]) -> Int[Array, " tokens"]:
    """For each response row its number among its sample's response rows, from 0; a number beyond all for other rows."""
    sizes = np.diff([*_first_rows(data), len(response)])
    first = np.repeat(np.maximum(data["response_start"].values - 1, 0), sizes)
    return np.where(response, data["position"].values.astype(np.int64) - first, np.iinfo(np.int64).max)


def _first_rows(data: xr.Dataset) -> Int[Array, " samples"]:
    """The index along `token` of each sample's first row."""
    return np.searchsorted(data["sample"].values, data["sample_index"].values)
