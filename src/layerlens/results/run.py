"""The Run: everything that an analysis measured, labelled, with means and bootstrap intervals."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pandas as pd
import xarray as xr

from layerlens.errors import SelectionError
from layerlens.metrics.intervals import LEVEL, RESAMPLES, bootstrap_means, interval
from layerlens.metrics.perplexity import perplexity
from layerlens.metrics.settling import DEEP, SETTLED
from layerlens.results.correctness import correct_responses
from layerlens.results.derived import module_change, token_depth, variable
from layerlens.results.rows import problem_numbers, row_digest, row_mask, row_weights
from layerlens.results.sharing import Sharing
from layerlens.results.sums import Sums, describe_mean, sums_of
from layerlens.storage.manifest import RunManifest
from layerlens.types import METRIC_BOUNDS, UNBOUNDED, LensName, Module, Norm, Rows, Segment, Weighting


@dataclass(frozen=True)
class Run(Sharing):
    """What one analysis measured.

    `data` is an xarray Dataset with dims `token` (all samples' decoded rows one after another), `layer` (1...L), `site`; coords
    `sample`, `position`, `token_id`, `token_text`, `in_response` and `segment` on `token`; `sample_id`, `sample_text`,
    `response_text`, `ground_truth`, `correct` (1 or 0 as the source of the text said, -1 if it did not), `response_start` and the
    matrices `similarity` and `cka` on `sample`; the whole texts' token ids in `text_token_id`, with their sample in `text_sample`, on
    `text_token`; `named_token_id` and `named_token_text` on `named_token`, which give the text of every id in the texts and in
    `top_ids`. If only some rows were drawn to be decoded, `token` holds those rows, with a coord `weight` (how many rows each
    stands for) that every mean respects. `manifest` says what was run on what; docs/definitions.md says what each number means.
    """

    data: xr.Dataset
    manifest: RunManifest
    path: Path | None = None

    @property
    def model(self) -> str:
        return self.manifest.model.name

    @property
    def norm(self) -> Norm:
        return self.manifest.config.norm

    @property
    def spread(self) -> float | None:
        """The spread in logits that norm "matched" scaled every state to; None under another norm."""
        return self.manifest.spread if self.manifest.config.spread is None else self.manifest.config.spread

    @property
    def lens(self) -> LensName:
        """The lens that carried states to the final layer; "logit" left them where they are."""
        return self.manifest.config.lens

    @property
    def convention(self) -> str:
        """The norm by which states were read, with what belongs to it: "final, tuned lens", "matched (spread 2.31 logits)"."""
        norm = self.norm if self.spread is None else f"{self.norm} (spread {self.spread:.3g} logits)"
        return norm if self.lens == "logit" else f"{norm}, {self.lens} lens"

    @property
    def n_layers(self) -> int:
        """Blocks of the model, L."""
        return self.manifest.model.n_layers or len(self.layers)

    @property
    def layers(self) -> list[int]:
        """The layers that were analysed, counted from 1."""
        return [int(layer) for layer in self.data["layer"].values]

    @property
    def sites(self) -> list[str]:
        return [str(site) for site in self.data["site"].values]

    @property
    def variables(self) -> tuple[str, ...]:
        """Names of the variables that were measured: those of `data`, and of a run that keeps means alone those that it has means of."""
        return tuple(map(str, self.data.data_vars))

    @property
    def n_rows(self) -> int:
        """Decoded rows of all samples."""
        return int(self.data.sizes["token"])

    @property
    def tokens_per_sample(self) -> int | None:
        """The largest number of response tokens that were decoded of a sample; None if all were."""
        return None if (self.row_weights() == 1).all() else int(self.data.attrs["tokens_per_sample"])

    @property
    def n_samples(self) -> int:
        """Samples that are in `data`."""
        return int(self.data.sizes["sample"])

    @cached_property
    def problems(self) -> np.ndarray:
        """The number of each sample's problem, from 0: samples with the same prompt are answers to one problem.

        A text without a prompt is a problem of its own, and so is every sample if all have the same prompt.
        """
        return problem_numbers(self.data)

    @property
    def complete(self) -> bool:
        """Whether all samples of the run are there."""
        return self.n_samples == self.manifest.samples.count

    @property
    def row_digests(self) -> list[str]:
        """Of each sample a digest of its rows: positions, token ids, and which of them are the response's."""
        return [row_digest(part.data) for part in self.parts()]

    def sample(self, which: int | str) -> xr.Dataset:
        """The rows of one sample, by its number (from 0, as in `data["sample"]`) or its id."""
        return self._part(self._place(which, self.data["sample_id"].values.tolist(), self.data["sample_index"].values.tolist()))

    def parts(self) -> Iterator[Run]:
        """The samples one by one, each as a run of its own: what goes over all rows of a long run takes no more memory than one sample."""
        for place in range(self.n_samples):
            yield Run(self._part(place), self.manifest)

    def thinned(self, rows: int) -> Run:
        """The run, or if it lies on disk and has more rows than this, about as many of them: samples spread evenly over it."""
        return self

    def _place(self, which: int | str, ids: Sequence[str], numbers: Sequence[int]) -> int:
        """The place of a sample in the run. Raises SelectionError if it is not there."""
        there = list(ids if isinstance(which, str) else numbers)
        if which not in there:
            raise SelectionError(f"no sample {which!r}; there are {', '.join(map(str, ids[:8]))}{', ...' if len(ids) > 8 else ''}")
        return there.index(which)

    def _part(self, place: int) -> xr.Dataset:
        number = self.data["sample_index"].values[place]
        rows = np.flatnonzero(self.data["sample"].values == number)
        sample = self.data.isel(token=rows, sample=[place])
        if "text_sample" not in sample.coords:  # of format 1, without the whole text
            return sample
        return sample.isel(text_token=np.flatnonzero(sample["text_sample"].values == number))

    def entropy_change(self, module: Module) -> xr.DataArray:
        """ΔS of a module at every token and layer: S(its output) - S(its input), nats."""
        return module_change(self.data, self.manifest, module)

    def values(self, name: str) -> xr.DataArray:
        """A variable as it was measured, or one derived: `entropy_change` (of all modules there are), `skill`, `log_perplexity`
        (-logp_next), and at every token `settling_depth`, `agreement_depth` and `deep_thinking_ratio` (1 if the token settles deep).

        Raises SelectionError if the run does not hold it.
        """
        return variable(self.data, self.manifest, name)

    def settling_depth(self, threshold: float = SETTLED) -> xr.DataArray:
        """The first layer of each token at which `js_to_final` of `resid_post` is at most `threshold` bits; NaN if it is at none."""
        return token_depth(self.data, self.manifest, "settling_depth", threshold)

    def deep_thinking(self, share: float = DEEP, threshold: float = SETTLED) -> xr.DataArray:
        """Whether each token (1 or 0) settles at relative depth `share` or later; its mean over a response is the deep-thinking ratio."""
        return token_depth(self.data, self.manifest, "deep_thinking_ratio", threshold, share)

    def sample_means(
        self, values: str | xr.DataArray, *, rows: Rows = "response", segment: Segment | None = None, drop_first: int = 0
    ) -> xr.DataArray:
        """The mean of each sample over its rows, NaN if it has none to count, with `sample` in front.

        `values` is a variable of `values`, or an array with `token` in front; other arguments as in `bootstrap`.
        """
        if isinstance(values, str):
            found = self._sums(values, "sample", rows, segment, drop_first)
        else:
            found = sums_of(self.data, values, self.row_mask(rows, drop_first, segment), "sample")
        coords = {**found.coords, "sample_id": self.data["sample_id"]}
        name = values if isinstance(values, str) else values.name
        return xr.DataArray(np.where(found.counts > 0, found.sums, np.nan), coords, ("sample", *found.dims), name, found.attrs)

    def correct(self, reward: str = "math") -> np.ndarray:
        """Whether each sample's response is right, by a reward of `load_reward` or as "recorded"; raises what `correct_responses` does."""
        return correct_responses(self.data, reward)

    def bootstrap(
        self,
        name: str,
        *,
        over: Weighting = "sample",
        rows: Rows = "response",
        segment: Segment | None = None,
        drop_first: int = 0,
        resamples: int = RESAMPLES,
        seed: int = 0,
    ) -> tuple[xr.DataArray, xr.DataArray]:
        """The mean of a variable over the data set, and its bootstrap with a first dimension `resample`.

        Problems are resampled, each with all its answers (`problems`), since answers to one problem are not independent.

        Args:
            name: a variable of `data`, or `entropy_change`, `skill`, `log_perplexity` (the mean of -`logp_next`, nats per token), or
                `perplexity`, its exponential: with `over="sample"` the geometric mean of the samples' perplexities, with "token"
                the perplexity of all tokens as one text.
            over: weighting: "sample" takes the mean of each sample first, "token" weighs all tokens alike, as the paper's
                reference implementation does. A drawn row counts as many times as the rows it stands for.
            rows: "response"; "all" to count prompt rows too; or "reference" for exactly the rows of the paper's code, from the
                second token after the prompt's "assistant" to the last position. Similarity and CKA are over the rows that
                `analyze(similarity_rows=)` gave them; the attrs of their mean say which.
            segment: count the rows of this segment alone, "prompt", "thinking" or "answer", in place of `rows`.
            drop_first: number of response rows to leave out at the start of each sample. The paper's code leaves out 1 under ChatML
                and none under Llama 3's template, but keeps the last position: `rows="reference"` is exact.
            resamples, seed: number of resamples and seed of the bootstrap.

        Returns:
            The mean, with the dims of the variable less `token` or `sample`, and the resampled means with `resample` in front.
            Attrs name weighting, rows (and whether position 0 may be one of them), the number of samples that have a row to
            average, and the number of their problems.

        Raises:
            SelectionError: an unknown variable, or no row to average.
        """
        found = self._sums("logp_next" if name == "perplexity" else name, over, rows, segment, drop_first)
        problems = self.problems
        point, means = bootstrap_means(found.sums, found.counts, resamples, seed, problems)
        if name == "perplexity":
            point, means = perplexity(point), perplexity(means)
        if found.per_sample:  # each sample's value is over all rows that were analysed
            rows, segment, drop_first = self.data.attrs.get("similarity_rows", self.data.attrs["rows"]), None, 0
        position_0 = not found.per_sample or self.data.attrs.get("similarity_rows", "all") == "all"
        described = {"over": over, "rows": rows, "segment": segment or "", "drop_first": drop_first, "position_0": int(position_0)}
        attrs = {**describe_mean(name, over), **described, **found.counted(problems)}
        return (
            xr.DataArray(point, found.coords, found.dims, name=name, attrs=attrs),
            xr.DataArray(means, found.coords, ("resample", *found.dims), name=name, attrs=attrs),
        )

    def _sums(self, name: str, over: Weighting, rows: Rows, segment: Segment | None, drop_first: int) -> Sums:
        """Each sample's sum and count of a variable; arguments as in `bootstrap`."""
        return sums_of(self.data, self.values(name), self.row_mask(rows, drop_first, segment), over)

    def mean(
        self,
        name: str,
        *,
        over: Weighting = "sample",
        rows: Rows = "response",
        segment: Segment | None = None,
        drop_first: int = 0,
        level: float = LEVEL,
        resamples: int = RESAMPLES,
        seed: int = 0,
    ) -> xr.Dataset:
        """Mean of a variable with its bootstrap interval: a Dataset of `mean`, `low` and `high`.

        Arguments as in `bootstrap`; `level` is the share of repeated data sets whose interval is to hold the population's mean.
        `low` and `high` lie in the metric's range. With one problem they are NaN. That of perplexity is the interval of its
        logarithm, exponentiated.
        """
        counted: dict[str, Any] = {"over": over, "rows": rows, "segment": segment, "drop_first": drop_first}
        options = {**counted, "resamples": resamples, "seed": seed}
        point, means = self.bootstrap("logp_next" if name == "perplexity" else name, **options)
        low, high = interval(means.values, point.values, point.attrs["problems"], level, bounds=METRIC_BOUNDS.get(name, UNBOUNDED))
        if name == "perplexity":
            low, high = perplexity(high), perplexity(low)
            point, _ = self.bootstrap(name, **{**options, "resamples": 1})
        return xr.Dataset({"mean": point, "low": (point.dims, low), "high": (point.dims, high)}, attrs={**point.attrs, "level": level})

    def by_weighting(self, name: str, *, rows: Rows = "response", drop_first: int = 0) -> xr.DataArray:
        """The mean under both weightings, without an interval and so at little cost: `over` ("sample", "token") is the first dimension.

        Arguments as in `bootstrap`. Where the two differ, long responses differ from short ones.
        """
        means = [self.bootstrap(name, over=over, rows=rows, drop_first=drop_first, resamples=1)[0] for over in get_args(Weighting)]
        both: xr.DataArray = xr.concat(means, pd.Index(get_args(Weighting), name="over"), combine_attrs="drop_conflicts")
        return both

    def to_frame(self) -> pd.DataFrame:
        """A tidy table: one row per token, layer and site, one column per metric with these three dimensions."""
        names = [str(name) for name, v in self.data.data_vars.items() if v.dims == ("token", "layer", "site")]
        frame = self.data[names].to_dataframe(dim_order=["token", "layer", "site"]).reset_index()
        weight = ["weight"] if "weight" in self.data.coords else []
        coords = ["token", "sample", "position", "token_id", "token_text", "in_response", "segment", *weight, "layer", "site"]
        return frame[[*coords, *names]].assign(in_response=frame["in_response"].astype(bool))

    def row_mask(self, rows: Rows = "response", drop_first: int = 0, segment: Segment | None = None) -> np.ndarray:
        """Which rows a mean counts, along `token`; arguments as in `bootstrap`. Raises SelectionError if there are none."""
        keep = row_mask(self.data, rows, drop_first, segment)
        self._require_some(bool(keep.any()))
        return keep

    def _require_some(self, there: bool) -> None:
        if not there:
            raise SelectionError(
                f"the run of {self.model} has no response rows to average; sample responses (generate=) or ask for rows='all'"
            )

    def row_weights(self) -> np.ndarray:
        """How many rows of the text each row stands for, along `token`: more than 1 if only some rows were drawn."""
        return row_weights(self.data)
