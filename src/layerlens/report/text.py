"""Texts, token by token: what each policy says at every layer, in compressed arrays, as much as the page may weigh."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import xarray as xr
from jaxtyping import Int

from layerlens.errors import LayerLensError, SelectionError
from layerlens.report.arrays import decimals_of, packed, plain
from layerlens.results import Run
from layerlens.types import METRIC_INFO, SEGMENTS

Array = np.ndarray

FIRST = ("entropy", "logp_next", "kl_to_final")
"""Metrics that a token's panel shows; a sample that they do not fit in is left out."""
LATER = (
    "js_to_final", "agrees", "rank_next", "kl_from_final", "renyi_2", "logit_sd", "entropy_change", "stream_cosine", "state_norm",
    "kl_from_layer",
)  # fmt: skip
MAIN = "resid_post"
FEWEST_BYTES = 1
"""Less than what the arrays that a sample must have take for each of its rows and layers."""
TAIL = 0.01
"""Share of a metric's values beyond either end of its colours, so that a few do not hide the rest."""
BY_MODULE = DIVERGING = ("entropy_change", "stream_cosine")
NO_TOP = "Top tokens need a run that kept them: add --top-k 5 to the command of `layerlens analyze`."
SHARE_DECIMALS = 3


class Budget:
    """Bytes that are left for arrays, and what did not fit in: columns by the label of what is there."""

    def __init__(self, left: int):
        self.left = left
        self.left_out: dict[str, list[str]] = {}

    def take(self, size: int, label: str, column: str = "") -> bool:
        """Takes so many bytes if there are so many; else notes what is left out."""
        if size > self.left:
            columns = self.left_out.setdefault(label, [])
            columns += [column] if column not in columns else []
            return False
        self.left -= size
        return True


def texts(run: Run, right: Sequence[bool | None] | str, left: int) -> dict[str, Any]:
    """A run's samples, ready for JSON, in about `left` bytes.

    First come the metrics FIRST and the likeliest token at resid_post, of as many samples as fit; then what `_Packer.wanted` names, and
    all other arrays, each of all samples or of none. If not all that is wanted fits, numbers lose a digit, so that more does.

    Args:
        right: whether each sample's response is right (None: not known), or why that is known of none.
    """
    if run.manifest.keep != "rows" or not run.n_rows:
        raise SelectionError("the run kept means alone, without the numbers of each token: analyse it without --keep means")
    shown = _that_may_fit(run, left)
    for coarse in (False, True):
        packer, budget = _Packer(shown, coarse), Budget(left)
        samples = _first(packer, right, budget, run.n_samples)
        _add(packer, samples, packer.wanted(), budget)
        if not budget.left_out:
            break
    _add(packer, samples, packer.others(), budget)
    held = dict.fromkeys(key for sample in samples for key in sample["blocks"])
    return {
        "layers": run.layers,
        "L": run.n_layers,
        "main": packer.main,
        "metrics": packer.described([key.split("|") for key in held if not key.startswith("top_")]),
        "top": NO_TOP if "top_ids" not in run.variables else "",
        "share_decimals": packer.share_decimals,
        "words": packer.words,
        "right": right if isinstance(right, str) else "",
        "left_out": [label + " at " * bool(columns[0]) + ", ".join(columns) for label, columns in budget.left_out.items()],
        "bytes": left - budget.left,
        "samples": samples,
    }


def _that_may_fit(run: Run, left: int) -> Run:
    """The first samples of a run, in memory: so many that those after them cannot fit into `left` bytes; at least one."""
    data = run.data
    first_rows = np.searchsorted(data["sample"].values, data["sample_index"].values)
    fit = max(1, int((first_rows * len(run.layers) * FEWEST_BYTES <= left).sum()))
    end = first_rows[fit] if fit < run.n_samples else run.n_rows
    return Run(data.isel(token=slice(0, int(end)), sample=slice(0, fit)).load(), run.manifest)


def _first(packer: _Packer, right: Sequence[bool | None] | str, budget: Budget, many: int) -> list[dict[str, Any]]:
    """The samples with the arrays that each must have; at least one, and as many of `many` as fit."""
    samples: list[dict[str, Any]] = []
    for place in range(packer.run.n_samples):
        words = packer.word_bytes if samples else 0
        sample = packer.sample(place, None if isinstance(right, str) else right[place])
        sample["blocks"] = {f"{name}|{column}": packer.block(place, name, column) for name, column in packer.first()}
        if (
            not budget.take(_size(sample) + packer.word_bytes - words, f"samples after the first {max(len(samples), 1)} of {many}")
            and samples
        ):
            break
        samples.append(sample)
    if packer.run.n_samples == len(samples) < many:
        budget.take(budget.left + 1, f"samples after the first {len(samples)} of {many}")
    return samples


def _add(packer: _Packer, samples: list[dict[str, Any]], arrays: Iterator[tuple[str, str]], budget: Budget) -> None:
    """Adds arrays to the samples, each to all of them or to none."""
    for name, column in arrays:
        words, label = packer.word_bytes, _label(name)
        first = packer.block(0, name, column)
        estimate = _size(first) * packer.tokens(len(samples)) // max(packer.tokens(1), 1)
        if estimate > budget.left and not budget.take(estimate, label, column):
            continue
        blocks = [first, *(packer.block(place, name, column) for place in range(1, len(samples)))]
        if budget.take(sum(map(_size, blocks)) + packer.word_bytes - words, label, column):
            for sample, block in zip(samples, blocks, strict=True):
                sample["blocks"][f"{name}|{column}"] = block


class _Packer:
    """One run's arrays, sample by sample."""

    def __init__(self, run: Run, coarse: bool):
        self.run, data = run, run.data
        self.sites = [site for site in (MAIN, "ffn_out", "attn_out", "resid_mid", "ffn_in", "attn_in", "resid_pre") if site in run.sites]
        self.main = self.sites[0]
        self.starts: Int[Array, " bounds"] = np.searchsorted(data["sample"].values, [*data["sample_index"].values, np.iinfo(np.int32).max])
        self.names = _token_names(data)
        self.words: list[str] = []
        self.word_bytes = 0
        self._places: dict[int, int] = {}
        self.values = {name: values for name in (*FIRST, *LATER) if (values := _values(run, name)) is not None}
        self.decimals = {name: max(0, decimals_of(values.values) - coarse) for name, values in self.values.items()}
        self.share_decimals = SHARE_DECIMALS - coarse
        if "top_ids" in data:  # the words that come most often get the smallest numbers, which compress best
            ids, counts = np.unique(data["top_ids"].sel(site=self.main).isel(rank=0).values, return_counts=True)
            for token in ids[np.argsort(-counts, kind="stable")].tolist():
                self._word(token)

    def tokens(self, samples: int) -> int:
        """Rows of the first samples together."""
        return int(self.starts[samples] - self.starts[0])

    def sample(self, place: int, right: bool | None) -> dict[str, Any]:
        """The text of a sample: its tokens, and for each the row that predicts it, or -1."""
        data = self.run.data
        rows = slice(self.starts[place], self.starts[place + 1])
        positions = data["position"].values[rows]
        segment = dict(zip((positions + 1).tolist(), data["segment"].values[rows].tolist(), strict=True))
        row = {int(position) + 1: number for number, position in enumerate(positions)}
        whole, before = self._whole(place, rows)
        return {
            "id": str(data["sample_id"].values[place]),
            "truth": str(data["ground_truth"].values[place]) if "ground_truth" in data.coords else "",
            "right": right,
            "before": before,
            "tokens": [self._word(token) for token in whole.values()],
            "rows": [row.get(position, -1) for position in whole],
            "segments": "".join(_code(segment.get(position)) for position in whole),
            "positions": list(whole),
            "n": len(positions),
        }

    def first(self) -> Iterator[tuple[str, str]]:
        """Yields names and columns of the arrays that a sample must have."""
        yield from ((name, self.main) for name in FIRST if name in self.values)
        yield from self._ranks(range(1), self.main)

    def wanted(self) -> Iterator[tuple[str, str]]:
        """Yields the arrays that a reader misses most: entropy at all sites, and the other likely tokens."""
        if "entropy" in self.values:
            yield from (("entropy", site) for site in self.sites[1:])
        yield from self._ranks(range(1, self.run.data.sizes.get("rank", 0)), self.main)

    def others(self) -> Iterator[tuple[str, str]]:
        """Yields all other arrays."""
        by_site = [name for name in (*FIRST, *LATER) if name in self.values and "site" in self.values[name].dims]
        yield from ((name, self.main) for name in by_site if name not in FIRST)
        for name in BY_MODULE:
            if name in self.values:
                yield from ((name, str(module)) for module in self.values[name]["module"].values)
        for site in self.sites[1:]:
            yield from ((name, site) for name in by_site if name != "entropy")
            yield from self._ranks(range(self.run.data.sizes.get("rank", 0)), site)

    def _ranks(self, ranks: range, column: str) -> Iterator[tuple[str, str]]:
        if "top_ids" in self.run.data:
            yield from (
                (f"{name}:{rank}", column) for rank in ranks if rank < self.run.data.sizes["rank"] for name in ("top_ids", "top_probs")
            )

    def block(self, place: int, name: str, column: str) -> dict[str, Any]:
        """An array of a sample, rows × layers."""
        rows = slice(int(self.starts[place]), int(self.starts[place + 1]))
        if name.startswith("top_"):
            variable, rank = name.split(":")
            values = self.run.data[variable].isel(token=rows, rank=int(rank)).sel(site=column).transpose("token", "layer").values
            if variable == "top_probs":
                return packed(values, self.share_decimals)
            ids, places = np.unique(values, return_inverse=True)
            return packed(np.array([self._word(token) for token in ids.tolist()])[places], 0)
        dim = "site" if "site" in self.values[name].dims else "module"
        return packed(self.values[name].isel(token=rows).sel({dim: column}).transpose("token", "layer").values, self.decimals[name])

    def described(self, held: Sequence[Sequence[str]]) -> list[dict[str, Any]]:
        """The metrics that the page holds, with the columns each is held at, unit, decimals and ends of its colours."""
        found = []
        for name in dict.fromkeys(name for name, _ in held):
            values = self.values[name].values
            finite = values[np.isfinite(values)].astype(np.float64)
            low, high = np.quantile(finite, [TAIL, 1 - TAIL]) if finite.size else (0.0, 1.0)
            if name in DIVERGING:
                low, high = -max(abs(low), abs(high)), max(abs(low), abs(high))
            elif 0 < low < high / 3:
                low = 0.0
            long_name, unit = METRIC_INFO[name]
            found.append({
                "name": name, "label": long_name, "unit": "" if unit == "1" else unit, "columns": [at for key, at in held if key == name],
                "low": plain(low), "high": plain(high if high > low else low + 1), "diverging": name in DIVERGING,
                "decimals": self.decimals[name],
            })  # fmt: skip
        return found

    def _whole(self, place: int, rows: slice) -> tuple[dict[int, int], str]:
        """The token ids of a sample's text by position, and the text before the first of them if no row gives its tokens."""
        data = self.run.data
        if "text_token_id" in data.coords:
            ids = data["text_token_id"].values[data["text_sample"].values == data["sample_index"].values[place]]
            first = 0
            if not all(token in self.names for token in ids.tolist()):  # an old run names the tokens of its rows alone
                first = max(0, int(data["position"].values[rows][0])) if rows.stop > rows.start else 0
            return {position: int(ids[position]) for position in range(first, len(ids))}, self._prompt(place, ids[first:]) if first else ""
        positions, ids = data["position"].values[rows], data["token_id"].values[rows]
        return dict(zip(positions.tolist(), ids.tolist(), strict=True)), ""

    def _prompt(self, place: int, shown: Int[Array, " tokens"]) -> str:
        """The text of a sample up to the tokens that are shown, whose last ones are the response."""
        data = self.run.data
        if "response_text" not in data.coords:
            return ""
        text = str(data["sample_text"].values[place]).removesuffix(str(data["response_text"].values[place]))
        return text.removesuffix(self.names.get(int(shown[0]), ""))

    def _word(self, token: int) -> int:
        """The number of a token in `words`."""
        if token not in self._places:
            self._places[token] = len(self.words)
            self.words.append(self.names.get(token, f"<{token}>"))
            self.word_bytes += len(json.dumps(self.words[-1])) + 1
        return self._places[token]


def _token_names(data: xr.Dataset) -> dict[int, str]:
    """The text of every token id that the run names."""
    names = dict(zip(data["token_id"].values.tolist(), map(str, data["token_text"].values), strict=True))
    if "named_token_id" in data.coords:
        names |= dict(zip(data["named_token_id"].values.tolist(), map(str, data["named_token_text"].values), strict=True))
    return names


def _values(run: Run, name: str) -> xr.DataArray | None:
    try:
        return run.values(name)
    except LayerLensError:
        return None


def _label(name: str) -> str:
    kind, _, rank = name.partition(":")
    return f"likely tokens no. {int(rank) + 1}" if rank else METRIC_INFO[kind][0]


def _code(segment: Any) -> str:
    """A segment's first letter, "-" for a token that no row predicts."""
    return str(segment)[0] if segment in SEGMENTS else "-"


def _size(value: Any) -> int:
    """About how many bytes a value of the page takes as JSON."""
    if isinstance(value, dict):
        return sum(len(key) + 4 + _size(item) for key, item in value.items())
    if isinstance(value, list):
        return sum(2 + _size(item) for item in value)
    return len(str(value)) + 2
