"""A run on disk, of which only what is asked for is read: means from the files of means, rows sample by sample, each when it is used."""

from __future__ import annotations

import json
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import cached_property
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr
from xarray.backends import BackendArray
from xarray.core import indexing

from layerlens.errors import SelectionError
from layerlens.results.folder import RunFolder
from layerlens.results.means import COUNTS, SUMS, TEXTS, VALUE, SampleFacts
from layerlens.results.rows import numbered_problems
from layerlens.results.run import Run
from layerlens.results.sums import Sums
from layerlens.storage.manifest import RunManifest
from layerlens.types import Rows, Segment, Weighting

CACHE_BYTES = 128 << 20
"""Means that are kept in memory once they are read; the longest unused go first."""


class _Rows(BackendArray):
    """A variable along the rows (or texts, or samples) of all samples, read when it is indexed, one sample at a time."""

    def __init__(self, sizes: Sequence[int], rest: Sequence[int], dtype: np.dtype, read: Callable[[int], np.ndarray]):
        self.ends = np.cumsum(sizes)
        self.shape = (int(self.ends[-1]), *rest)
        self.dtype = dtype
        self.read = read
        """Takes a sample's place in the run, and gives its part."""

    def __getitem__(self, key: indexing.ExplicitIndexer) -> Any:
        return indexing.explicit_indexing_adapter(key, self.shape, indexing.IndexingSupport.OUTER, self._outer)

    def _outer(self, key: tuple[Any, ...]) -> np.ndarray:
        wanted = np.arange(self.shape[0])[key[0]]
        rows = np.atleast_1d(wanted)
        places = np.searchsorted(self.ends, rows, side="right")
        parts = []
        for place in dict.fromkeys(places.tolist()):
            part = self.read(place)[rows[places == place] - (self.ends[place - 1] if place else 0)]
            for axis in range(len(key) - 1, 0, -1):
                part = part[(slice(None),) * axis + (key[axis],)]
            parts.append(part)
        if not parts:
            return np.empty(self.shape, self.dtype)[:0][(slice(None), *key[1:])]
        order = np.argsort(places, kind="stable")
        found = np.concatenate(parts)[np.argsort(order, kind="stable")] if (np.diff(places) < 0).any() else np.concatenate(parts)
        return found if np.ndim(wanted) else found[0]


class StoredRun(Run):
    """A `Run` whose `data` is read when it is used. With `keep="means"` it has no rows: `data` then holds what each sample has once."""

    _folder: RunFolder
    _numbers: list[int]
    _facts: list[SampleFacts]
    _layout: dict[str, Any]
    _cache: OrderedDict[tuple[str, str], tuple[np.ndarray, np.ndarray]]

    def __init__(self, folder: RunFolder, manifest: RunManifest, numbers: Sequence[int], facts: Sequence[SampleFacts], layout: str):
        for name, value in {"manifest": manifest, "path": folder.path}.items():
            object.__setattr__(self, name, value)
        self.__dict__.update(_folder=folder, _numbers=list(numbers), _facts=list(facts), _layout=json.loads(layout), _cache=OrderedDict())

    @cached_property
    def data(self) -> xr.Dataset:
        return _lazy_dataset(self)

    @property
    def keeps_rows(self) -> bool:
        return self.manifest.keep == "rows"

    @property
    def variables(self) -> tuple[str, ...]:
        return tuple(self._layout["stored"])

    @property
    def layers(self) -> list[int]:
        return [int(layer) for layer in self._layout["labels"]["layer"]]

    @property
    def sites(self) -> list[str]:
        return list(self._layout["labels"]["site"])

    @property
    def n_rows(self) -> int:
        return sum(facts.rows for facts in self._facts)

    @property
    def n_samples(self) -> int:
        return len(self._numbers)

    @property
    def tokens_per_sample(self) -> int | None:
        return int(self._layout["run"]["tokens_per_sample"]) if any(facts.drawn for facts in self._facts) else None

    @property
    def thinking_rows(self) -> list[float]:
        """Of each sample the number of rows that predict a token of its thinking."""
        return [_weight(facts, "thinking") for facts in self._facts]

    @cached_property
    def problems(self) -> np.ndarray:
        return numbered_problems([facts.prompt or number for number, facts in enumerate(self._facts)])

    @property
    def row_digests(self) -> list[str]:
        return [facts.row_digest for facts in self._facts]

    def sample(self, which: int | str) -> xr.Dataset:
        number = self._numbers[self._place(which, [facts.once["sample_id"] for facts in self._facts], self._numbers)]
        self._require_rows("rows")
        return self._folder.read(number)

    def parts(self) -> Iterator[Run]:
        self._require_rows("rows")
        for number in self._numbers:
            yield Run(self._folder.read(number), self.manifest)

    def thinned(self, rows: int) -> Run:
        self._require_rows("rows")
        if self.n_rows <= rows:
            return self
        step = int(np.ceil(self.n_rows / rows))
        return StoredRun(self._folder, self.manifest, self._numbers[::step], self._facts[::step], json.dumps(self._layout))

    def values(self, name: str) -> xr.DataArray:
        if self._layout["variables"].get(name, {"dims": ["sample"]})["dims"][0] == "token":
            self._require_rows(name)
        return super().values(name)

    def to_frame(self) -> pd.DataFrame:
        self._require_rows("rows")
        return super().to_frame()

    def row_mask(self, rows: Rows = "response", drop_first: int = 0, segment: Segment | None = None) -> np.ndarray:
        self._require_rows("rows")
        return super().row_mask(rows, drop_first, segment)

    def _require_rows(self, what: str) -> None:
        if not self.keeps_rows:
            of = what if what == "rows" else f"{what} of single rows"
            raise SelectionError(f"the run of {self.model} kept means alone (--keep means), so it has no {of}: analyse without that option")

    def _sums(self, name: str, over: Weighting, rows: Rows, segment: Segment | None, drop_first: int) -> Sums:
        if name == "log_perplexity":
            found = self._sums("logp_next", over, rows, segment, drop_first)
            return replace(found, sums=np.where(found.counts > 0, -found.sums, 0.0))
        group = segment or rows
        held = [group in facts.groups for facts in self._facts]
        if drop_first or name not in self._layout["variables"] or not (any(held) if segment else all(held)):
            return self._sums_of_rows(name, over, rows, segment, drop_first)
        weights = np.array([_weight(facts, group) for facts in self._facts])
        self._require_some(bool(weights.any()))
        described = self._layout["variables"][name]
        dims = tuple(described["dims"])
        coords = {dim: _labels(labels) for dim, labels in described["labels"].items()}
        sums, counts = self._read_sums(name, group, tuple(map(len, described["labels"].values())))
        per_sample = dims[0] == "sample"
        if per_sample and over == "token":
            counts = counts * weights.reshape(-1, *[1] * (counts.ndim - 1))
            sums = sums * counts
        found = Sums(sums, counts, dims[1:], coords, described["attrs"], per_sample)
        return found if per_sample else found.weighted(over)

    def _sums_of_rows(self, name: str, over: Weighting, rows: Rows, segment: Segment | None, drop_first: int) -> Sums:
        """As in memory, over the rows: for what the files of means do not hold, and for the errors that name what a run lacks."""
        if not self.keeps_rows:
            kept = ", ".join(dict.fromkeys(group for facts in self._facts for group in facts.groups))
            which = f"drop_first={drop_first}" if drop_first else f"{name} over {segment or rows} rows"
            raise SelectionError(f"the run of {self.model} kept means alone (--keep means), of {kept} rows: it has no {which}")
        return super()._sums(name, over, rows, segment, drop_first)

    def _read_sums(self, name: str, group: str, shape: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray]:
        """Sums and counts of every sample along the first dimension; values and whether they are known, if there is one per sample."""
        cache = self._cache
        if (name, group) not in cache:
            cache[name, group] = self._read_all_sums(name, group, shape)
            while sum(sums.nbytes + counts.nbytes for sums, counts in cache.values()) > CACHE_BYTES and len(cache) > 1:
                cache.popitem(last=False)
        cache.move_to_end((name, group))
        sums, counts = cache[name, group]
        return sums, np.broadcast_to(counts, sums.shape)

    def _read_all_sums(self, name: str, group: str, shape: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray]:
        """What `_read_sums` returns; the counts with lengths of 1 where all layers and sites of a sample have the same."""
        per_sample = self._layout["variables"][name]["dims"][0] == "sample"
        sums = np.zeros((self.n_samples, *shape))
        counts = np.zeros((self.n_samples, *shape) if per_sample else (self.n_samples, *[1] * len(shape)))
        for place, (number, facts) in enumerate(zip(self._numbers, self._facts, strict=True)):
            with self._folder.reading_means(number) as file:
                if per_sample:
                    values = file.read(VALUE + name)[0].astype(np.float64)
                    counts[place] = ~np.isnan(values)
                    sums[place] = np.where(counts[place] > 0, values, 0.0)
                elif group in facts.groups:
                    which = facts.groups.index(group)
                    sums[place] = file.read(SUMS + name)[which]
                    number_of = file.read(COUNTS + name)[which]
                    if number_of.shape == shape and counts.shape != sums.shape:
                        counts = np.broadcast_to(counts, sums.shape).copy()
                    counts[place] = number_of if number_of.shape == shape else number_of.item()
        return sums, counts


def _weight(facts: SampleFacts, group: str) -> float:
    return facts.row_weights[facts.groups.index(group)] if group in facts.groups else 0.0


def _labels(labels: Sequence[Any]) -> np.ndarray:
    return np.array(labels, np.int32 if labels and isinstance(labels[0], int) else object)


def _lazy_dataset(run: StoredRun) -> xr.Dataset:
    """The data of a run as `join_samples` gives them, each variable read when it is used."""
    folder, numbers, facts, layout = run._folder, run._numbers, run._facts, run._layout

    def lazy(dims: Sequence[str], sizes: Sequence[int], rest: Sequence[int], dtype: Any, attrs: Any, read: Any) -> xr.Variable:
        rows = _Rows(sizes, rest, np.dtype(dtype), lambda place: read(numbers[place]))
        return xr.Variable(dims, indexing.LazilyIndexedArray(rows), attrs)

    def means(dims: Sequence[str], sizes: Sequence[int], rest: Sequence[int], dtype: Any, attrs: Any, read: Any) -> xr.Variable:
        def of(number: int) -> np.ndarray:
            with folder.reading_means(number) as file:
                return np.asarray(read(file))

        return lazy(dims, sizes, rest, dtype, attrs, of)

    once = [1] * len(numbers)
    rows, lengths, named = zip(*((each.rows, each.text_tokens, each.named_tokens) for each in facts), strict=True)
    found: dict[str, xr.Variable] = {}
    for name, (dims, dtype, rest, attrs) in layout["rows"].items() if run.keeps_rows else ():
        found[name] = lazy(
            dims, rows if dims[0] == "token" else named, rest, dtype, attrs, lambda number, name=name: folder.read_rows(number, name)
        )
    for name, described in layout["variables"].items():
        if described["dims"][0] == "sample":
            rest = [len(labels) for labels in described["labels"].values()]
            read: Any = lambda file, name=name: file.read(VALUE + name)  # noqa: E731
            found[name] = means(described["dims"], once, rest, "<f4", described["attrs"], read)
    for name in TEXTS:
        found[name] = means(("sample",), once, [], object, {}, lambda file, name=name: np.array([file.text(name)], object))
    found["text_token_id"] = means(("text_token",), lengths, [], "<i4", {}, lambda file: file.read("text_token_id"))
    place = {number: place for place, number in enumerate(numbers)}
    found["text_sample"] = lazy(
        ("text_token",), lengths, [], "<i4", {}, lambda number: np.full(lengths[place[number]], number, np.int32)
    )  # fmt: skip
    coords: dict[str, Any] = {
        name: ("sample", np.array([each.once[name] for each in facts], dtype)) for name, dtype in layout["once"].items()
    }
    coords |= {dim: _labels(labels) for dim, labels in layout["labels"].items()}
    if "similarity" in found or "cka" in found:
        coords["layer_to"] = coords["layer"]
    coords |= {name: each for name, each in found.items() if name not in layout["stored"]}
    stored = {name: found[name] for name in layout["stored"] if name in found}
    order = [name for name in layout["coords"] if name in coords]
    return xr.Dataset(stored, {name: coords[name] for name in order}, layout["run"])
