"""A caption says on how many samples the mean that is drawn rests, whatever else the run holds."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from layerlens import plots
from layerlens.plots.kit.caption import describe_runs
from layerlens.plots.kit.run_data import as_runs
from layerlens.results import Run
from tests.support.plots import (
    caption_of,
    rise_and_fall,
)
from tests.support.synthetic_runs import make_run

FIGURES: dict[str, Callable[..., Any]] = {
    "sites": plots.entropy_heatmap,
    "flow": plots.entropy_flow,
    "changes": plots.entropy_change,
    "curve": plots.metric_by_layer,
    "curves": plots.entropy_curves,
    "comparison": lambda runs, **mean: plots.compare_families(as_runs(runs), **mean),
    "grid": plots.family_grid,
    "cosines": plots.stream_cosine,
    "perplexity": lambda run, **mean: plots.metric_by_layer(run, "perplexity", **mean),
}


def silenced(run: Run, *samples: int) -> Run:
    """The run as if these samples were prompts without a response."""
    response = run.data["in_response"] & ~np.isin(run.data["sample"], samples)
    return Run(run.data.assign_coords(in_response=response.astype(np.int8)), run.manifest)


@pytest.mark.parametrize("kind", FIGURES)
def test_captions_do_not_count_samples_without_a_response(kind: str) -> None:
    run = silenced(rise_and_fall(6, samples=5), 1, 3)
    assert "· 3 of 5 samples · mean of per-sample means, response rows" in caption_of(FIGURES[kind](run))
    assert "· 5 samples ·" in caption_of(FIGURES[kind](run, rows="all"))
    alone = caption_of(FIGURES[kind](silenced(run, 2, 4)))
    assert "· 1 of 5 samples · mean over tokens, response rows" in alone
    assert "bootstrap" not in alone


@pytest.mark.parametrize("kind", ["curve", "curves", "comparison", "grid"])
def test_captions_count_the_samples_of_each_run(kind: str) -> None:
    whole, fewer, single = (silenced(rise_and_fall(6, samples=5), *silent) for silent in ((), (1, 3), (0, 1, 2, 3)))
    assert "samples: 5 / 3 of 5 / 1 of 5" in caption_of(FIGURES[kind]([whole, fewer, single]))
    assert "· 3 of 5 samples each ·" in caption_of(FIGURES[kind]([fewer, fewer]))
    if kind != "grid":  # which draws no interval
        assert "bootstrap interval over samples (none for runs of 1 sample)" in caption_of(FIGURES[kind]([single, whole]))


def test_difference_heatmap_caption_counts_the_samples_of_both_means() -> None:
    before = rise_and_fall(6, samples=5)
    assert "samples: 5 / 3 of 5" in caption_of(plots.difference_heatmap(before, silenced(before, 1, 3)))
    alone = caption_of(plots.difference_heatmap(silenced(before, 0, 1, 2, 3), before))
    assert "1 sample: no interval" in alone
    assert "samples: 1 of 5 / 5" in alone


def test_similarity_caption_counts_whole_texts() -> None:
    run = silenced(rise_and_fall(6, samples=5), 1, 3)
    assert "· 5 samples · mean of per-sample means, all rows" in caption_of(plots.similarity(run))
    assert "· 3 of 5 samples ·" in caption_of(plots.similarity(run, over="token")), "weighed by response tokens"


def test_describe_runs_takes_one_mean_for_several_runs() -> None:
    runs = [rise_and_fall(6, samples=5), rise_and_fall(8, samples=5)]
    mean = runs[0].mean("entropy").attrs
    assert describe_runs(runs, mean) == describe_runs(runs, [mean, mean])
    assert "5 samples each" in describe_runs(runs, mean)


def test_caption_names_problems_if_samples_share_them() -> None:
    """Four answers to two prompts are two problems, which the interval is over."""
    run = rise_and_fall(6, samples=4)
    starts, sample = run.data["response_start"].values, run.data["text_sample"].values
    tokens = run.data["text_token_id"].values.copy()
    for index in range(4):
        tokens[np.flatnonzero(sample == index)[: starts[index]]] = index % 2
    starts = np.minimum(starts, starts.min())
    shared = Run(run.data.assign_coords(text_token_id=("text_token", tokens), response_start=("sample", starts)), run.manifest)
    caption = caption_of(plots.metric_by_layer(shared, "entropy"))
    assert "4 samples, answers to 2 problems" in caption
    assert "95% bootstrap interval over problems" in caption


def test_captions_name_the_lens_of_every_run() -> None:
    runs = [make_run([0.5] * 4, norm="final") for _ in range(2)]
    tuned = replace(runs[1], manifest=replace(runs[1].manifest, config=replace(runs[1].manifest.config, lens="tuned")))
    assert "norm: final, logit lens" in describe_runs(runs)
    assert "norm: final, tuned lens" in describe_runs(tuned)
    assert "norm: final, logit lens / final, tuned lens" in describe_runs([runs[0], tuned])
