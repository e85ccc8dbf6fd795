"""What curves need of a sample, beside its file: sums over its rows, for every choice of rows, and its text. A few kilobytes each.

One safetensors file per sample. Its metadata repeat the run's identity, the sample's number and a digest of each array, as the sample's
file does (`seal`); `facts` are the sample's own, `layout` is that of every sample of the run.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
import safetensors.numpy
import xarray as xr

from layerlens.errors import SelectionError
from layerlens.results.derived import variable
from layerlens.results.rows import row_digest, row_mask, row_weights, sums_by_sample
from layerlens.results.schema import DIMS
from layerlens.results.seal import DIGESTS, NUMBER, RUN, Damage, digest, require_place
from layerlens.storage.manifest import RunManifest
from layerlens.types import DERIVED_FROM, SEGMENTS

Array = np.ndarray
DERIVED = ("entropy_change", "skill", *DERIVED_FROM)
"""Derived variables whose sums are kept; that of `log_perplexity` is the negative of `logp_next`'s."""
SUMS, COUNTS, VALUE, TEXT = "sums/", "counts/", "value/", "text/"
SAID, FACTS, LAYOUT, DIGITS = "layerlens", "facts", "layout", 16
"""The entry of the metadata: a digest of DIGITS digits, then the JSON text that it is of."""
TEXTS = ("sample_text", "response_text")
NAMED = "named_token"


@dataclass(frozen=True)
class SampleFacts:
    """What is known of one sample without its rows.

    Attributes:
        rows, text_tokens, named_tokens: number of decoded rows, of tokens in the whole text, and of tokens that have names.
        once: the coordinates that a sample has once, such as `sample_id`, but for its texts.
        prompt: digest of the prompt's token ids, empty if the text has no prompt.
        row_digest: of `results.rows.row_digest`.
        drawn: whether some rows stand for others that were not decoded.
        groups: the choices of rows that the sums are over, in order: of `Rows` and `Segment`.
        row_weights: how many rows of the text each group has.
    """

    rows: int
    text_tokens: int
    named_tokens: int
    once: dict[str, Any]
    prompt: str
    row_digest: str
    drawn: bool
    groups: list[str] = field(default_factory=list)
    row_weights: list[float] = field(default_factory=list)


@dataclass(frozen=True)
class SampleMeans:
    """The content of one file: arrays by name, and what `facts` and `layout` say."""

    facts: SampleFacts
    layout: str
    arrays: dict[str, Array]


def means_of(sample: xr.Dataset, manifest: RunManifest) -> SampleMeans:
    """The sums of a sample's data set over each choice of its rows, float64, and the number of values in each."""
    groups = _groups(sample)
    weight = row_weights(sample)
    arrays: dict[str, Array] = {}
    described: dict[str, Any] = {}
    for name, values in _variables(sample, manifest).items():
        labels = {str(dim): values[dim].values.tolist() for dim in values.dims[1:]}
        described[name] = {"dims": list(map(str, values.dims)), "labels": labels, "attrs": dict(values.attrs)}
        if values.dims[0] == "sample":
            arrays[VALUE + name] = values.values
            continue
        parts = [sums_by_sample(sample, values, keep, "token") for keep in groups.values()]
        sums, counts = (np.concatenate([part[place] for part in parts]) for place in (0, 1))
        flat = counts.reshape(len(counts), -1)
        arrays[SUMS + name], arrays[COUNTS + name] = sums, flat[:, :1] if (flat == flat[:, :1]).all() else counts
    for name in TEXTS:
        arrays[TEXT + name] = np.frombuffer(str(sample[name].values[0]).encode(), np.uint8)
    ids = sample["text_token_id"].values
    arrays["text_token_id"] = ids
    start = int(sample["response_start"].values[0])
    once = {str(name): each.values for name, each in sample.coords.items() if each.dims == ("sample",) and name not in TEXTS}
    facts = SampleFacts(
        rows=sample.sizes["token"],
        text_tokens=len(ids),
        named_tokens=sample.sizes.get(NAMED, 0),
        once={name: values.item() for name, values in once.items()},
        prompt=hashlib.blake2b(ids[:start].tobytes(), digest_size=16).hexdigest() if start else "",
        row_digest=row_digest(sample),
        drawn=bool((weight != 1).any()),
        groups=list(groups),
        row_weights=[float(np.add.reduce(keep * weight)) for keep in groups.values()],
    )
    along_rows = {str(name): each for name, each in sample.variables.items() if {"token", NAMED} & {*each.dims}}
    layout = {
        "stored": list(map(str, sample.data_vars)),
        "coords": list(map(str, sample.coords)),
        "labels": {str(dim): sample[dim].values.tolist() for dim in ("layer", "site", "module") if dim in sample.coords},
        "variables": described,
        "once": {name: _dtype(sample[name].variable) for name in once},
        "rows": {
            name: [list(map(str, each.dims)), _dtype(each), list(each.shape[1:]), dict(each.attrs)] for name, each in along_rows.items()
        },
        "run": dict(sample.attrs),
    }
    return SampleMeans(facts, json.dumps(layout, default=_plain, sort_keys=True), arrays)


def write_means(file: Path, means: SampleMeans, run: str, number: int) -> None:
    """Writes the file; `run` and `number` as in `sealed`."""
    arrays = {name: np.ascontiguousarray(values) for name, values in means.arrays.items() if values.size}
    attrs = {RUN: run, NUMBER: number, FACTS: asdict(means.facts), LAYOUT: means.layout}
    said = json.dumps({**attrs, DIGESTS: {name: digest(name, values) for name, values in arrays.items()}}, sort_keys=True)
    # one entry, since safetensors writes several in an order of chance
    safetensors.numpy.save_file(arrays, file, {SAID: _digest_of(said) + said})


class MeansFile:
    """An open file of means. Raises Damage, or whatever a broken file raises, if it is not what it should be."""

    def __init__(self, path: Path, run: str, number: int):
        opening: Any = safetensors.safe_open
        self._file = opening(path, "numpy")
        said = self._file.metadata()[SAID]
        if said[:DIGITS] != _digest_of(said[DIGITS:]):
            raise Damage("its description is not what was written")
        found = json.loads(said[DIGITS:])
        require_place(found, run, number)
        self._digests: dict[str, str] = found[DIGESTS]
        self.layout: str = found[LAYOUT]
        self.facts = SampleFacts(**found[FACTS])

    def names(self) -> list[str]:
        """Names of all arrays."""
        return list(self._digests)

    def read(self, name: str) -> Array:
        """An array; an empty one if none of that name was written."""
        if name not in self._digests:
            return np.zeros(0, np.uint8)
        values: Array = self._file.get_tensor(name)
        if digest(name, values) != self._digests[name]:
            raise Damage(f"its {name} is not what was written")
        return values

    def text(self, name: str) -> str:
        """One of TEXTS."""
        return self.read(TEXT + name).tobytes().decode()


def _variables(sample: xr.Dataset, manifest: RunManifest) -> dict[str, xr.DataArray]:
    """Stored and derived variables that have a mean."""
    found = {str(name): each for name, each in sample.data_vars.items() if "rank" not in each.dims and name in DIMS}
    for name in DERIVED:
        try:
            found[name] = variable(sample, manifest, name)
        except SelectionError:
            continue
    return found


def _groups(sample: xr.Dataset) -> dict[str, Array]:
    """The rows of each choice that the sample has, by its name."""
    groups = {"all": np.ones(sample.sizes["token"], bool)}
    for rows in ("response", "reference"):
        try:
            groups[rows] = row_mask(sample, rows)
        except SelectionError:
            continue
    there = sample["segment"].values
    return groups | {segment: there == segment for segment in SEGMENTS if segment in there}


def _dtype(each: xr.Variable) -> str:
    return "object" if each.dtype.kind in "OUST" else each.dtype.str


def _plain(value: Any) -> Any:
    return value.item() if isinstance(value, np.generic) else str(value)


def _digest_of(text: str) -> str:
    return hashlib.blake2b(text.encode(), digest_size=DIGITS // 2).hexdigest()
