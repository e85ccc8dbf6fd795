"""Means of a run, their weights, rows and intervals, and its tidy table."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import layerlens as ll
from layerlens.errors import SelectionError
from layerlens.types import METRIC_BOUNDS
from tests.support.synthetic_runs import make_run
from tests.support.tiny_models import random_ids


def test_mean_weights_and_rows() -> None:
    run = make_run([1.0, 0.0, -1.0], samples=5, tokens=9)
    entropy, sample = run.data["entropy"].values.astype(np.float64), run.data["sample"].values
    response = run.data["in_response"].values.astype(bool)
    per_sample = np.stack([entropy[(sample == i) & response].mean(0) for i in range(5)])
    np.testing.assert_allclose(run.mean("entropy")["mean"], per_sample.mean(0))
    np.testing.assert_allclose(run.mean("entropy", over="token")["mean"], entropy[response].mean(0))
    np.testing.assert_allclose(run.mean("entropy", over="token", rows="all")["mean"], entropy.mean(0))
    late = np.stack([entropy[(sample == i) & response][2:].mean(0) for i in range(5)])
    np.testing.assert_allclose(run.mean("entropy", drop_first=2)["mean"], late.mean(0))
    np.testing.assert_allclose(run.mean("similarity")["mean"], run.data["similarity"].values.mean(0), rtol=1e-6)
    np.testing.assert_allclose(
        run.mean("entropy_change")["mean"].sel(module="ffn"),
        run.mean("entropy")["mean"].sel(site="ffn_out") - run.mean("entropy")["mean"].sel(site="ffn_in"),
        atol=1e-6,
    )
    mean = run.mean("entropy")
    assert (mean["low"] <= mean["mean"]).all()
    assert (mean["mean"] <= mean["high"]).all()
    assert mean["mean"].attrs["units"] == "nats"


def test_both_weightings_are_those_of_the_mean() -> None:
    run = make_run([1.0, 0.0, -1.0], samples=5, noise=0.5)
    for name in ("entropy", "entropy_change", "similarity", "perplexity"):
        both = run.by_weighting(name, rows="all")
        for over in ("sample", "token"):
            np.testing.assert_array_equal(both.sel(over=over, drop=True), run.mean(name, over=over, rows="all", resamples=2)["mean"])  # type: ignore[arg-type]


def test_one_sample_has_no_interval() -> None:
    mean = make_run([1.0, -1.0], samples=1).mean("entropy")
    assert mean["mean"].notnull().all()
    assert mean["low"].isnull().all()
    assert mean["high"].isnull().all()


def test_answers_to_one_prompt_are_one_problem(qwen: ll.LensModel) -> None:
    """Four prompts with three answers each are resampled as four problems; texts without a prompt, and answers to one, by themselves."""
    prompts = [random_ids(3, seed) for seed in range(4)]
    texts = [[*prompt, *random_ids(4, 10 * seed + repeat)] for repeat in range(3) for seed, prompt in enumerate(prompts)]
    run = ll.analyze(qwen, [ll.Sample(text, 3) for text in texts], metrics="entropy", sites="resid_post")
    assert run.problems.tolist() == [0, 1, 2, 3] * 3
    mean = run.mean("entropy")
    assert (mean.attrs["samples"], mean.attrs["problems"]) == (12, 4)
    alone = ll.analyze(qwen, [ll.Sample(text, 3) for text in texts[:3]], metrics="entropy", sites="resid_post")
    assert alone.problems.tolist() == [0, 1, 2]
    assert ll.analyze(qwen, [ll.Sample(text) for text in (texts[0], texts[0], texts[1])], metrics="entropy").problems.tolist() == [0, 1, 2]
    one = ll.analyze(qwen, [ll.Sample([*prompts[0], token], 3) for token in (5, 6, 7)], metrics="entropy")
    assert one.problems.tolist() == [0, 1, 2], "answers to the only prompt there is"
    assert one.mean("entropy")["low"].notnull().all()


def test_intervals_stay_in_the_range_of_their_metric() -> None:
    run = make_run([0.4, -0.2, -1.0], samples=2, noise=3.0)
    for name, (lowest, highest) in METRIC_BOUNDS.items():
        if name in run.data:
            mean = run.mean(name)
            assert float(mean["low"].min()) >= lowest
            assert float(mean["high"].max()) <= highest
    assert (run.mean("entropy_change")["low"] < 0).any()


def test_interval_of_perplexity_is_that_of_its_logarithm() -> None:
    run = make_run([0.4, -0.2, -1.0], samples=5, noise=0.5)
    perplexity, logp = run.mean("perplexity"), run.mean("logp_next")
    for name, other in (("mean", "mean"), ("low", "high"), ("high", "low")):
        np.testing.assert_allclose(np.log(perplexity[name]), -logp[other], rtol=1e-12)


def test_prompts_alone_have_no_response_mean(qwen: ll.LensModel) -> None:
    run = ll.analyze(qwen, [ll.Sample(random_ids(5), 5)])
    with pytest.raises(SelectionError, match="no response rows"):
        run.mean("entropy")
    assert run.mean("entropy", rows="all")["mean"].notnull().all()


def test_frame_is_tidy(qwen: ll.LensModel) -> None:
    run = ll.analyze(qwen, [ll.Sample(random_ids(n, n), 2) for n in (4, 6)])
    frame = run.to_frame()
    assert len(frame) == 10 * 4 * 7
    row = frame[(frame["sample"] == 1) & (frame["position"] == 3) & (frame["layer"] == 2) & (frame["site"] == "ffn_out")].iloc[0]
    at = np.flatnonzero((run.data["sample"].values == 1) & (run.data["position"].values == 3))[0]
    assert row["entropy"] == run.data["entropy"].sel(layer=2, site="ffn_out").values[at]
    assert set(frame.columns) >= {"token_text", "in_response", "entropy", "logp_next", "kl_to_final", "agrees"}


@pytest.mark.parametrize("rows", ["response", "all"])
def test_dropping_first_response_rows_leaves_all_other_rows(rows: Any) -> None:
    run = make_run([1.0, -1.0], samples=3, tokens=12)
    kept, dropped = run.row_mask(rows), run.row_mask(rows) & ~run.row_mask(rows, drop_first=2)
    expected = np.zeros_like(kept)
    for number in range(3):
        response = np.flatnonzero((run.data["sample"].values == number) & run.data["in_response"].values.astype(bool))
        expected[response[:2]] = True
    np.testing.assert_array_equal(dropped, expected)
