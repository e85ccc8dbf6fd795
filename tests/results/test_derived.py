"""Depths of a run's tokens, their means by response and segment, and which responses are right."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

import layerlens as ll
from layerlens.errors import SelectionError
from layerlens.results import Run
from tests.support.thinking_runs import RIGHT, thinking_run
from tests.support.tiny_models import random_ids


@pytest.fixture(scope="module")
def run() -> ll.Run:
    return thinking_run()


def test_to_ask_for_a_depth_is_to_ask_for_what_it_follows_from(run: ll.Run) -> None:
    assert set(run.data.data_vars) == {"js_to_final", "agrees"}
    assert run.manifest.config.metrics == ("agrees", "js_to_final")


def test_every_token_settles_under_norm_final_by_the_last_layer(run: ll.Run) -> None:
    depth = run.values("settling_depth")
    assert depth.dims == ("token",)
    assert depth.attrs == {"long_name": "settling depth", "units": "layer", "threshold": 0.5}
    assert depth.min() >= 1
    assert depth.max() <= run.n_layers
    assert (run.settling_depth(1e-5) == run.n_layers).all()
    assert (run.settling_depth(1.0) == 1).all()
    assert (run.settling_depth(0.2) >= depth).all()
    assert (run.values("agreement_depth") <= run.n_layers).all()


@pytest.mark.parametrize("segment", [None, "thinking", "answer"])
def test_deep_thinking_ratio_of_a_response_is_the_share_of_its_tokens_that_settle_deep(run: ll.Run, segment: str | None) -> None:
    depth, kind, sample = run.values("settling_depth").values, run.data["segment"].values, run.data["sample"].values
    counted = np.isin(kind, ["thinking", "answer"]) if segment is None else kind == segment
    expected = [np.mean(depth[counted & (sample == i)] >= 6) if (counted & (sample == i)).any() else np.nan for i in range(3)]
    ratio = run.sample_means("deep_thinking_ratio", segment=segment)
    np.testing.assert_array_equal(ratio, expected)
    assert (ratio.dims, ratio.attrs["share"]) == (("sample",), 0.85)
    mean = run.mean("deep_thinking_ratio", segment=segment)
    np.testing.assert_allclose(mean["mean"], np.nanmean(expected))
    assert 0 <= mean["low"] <= mean["mean"] <= mean["high"] <= 1


def test_sample_means_average_to_the_mean_over_samples(run: ll.Run) -> None:
    np.testing.assert_allclose(run.sample_means("js_to_final").mean("sample"), run.mean("js_to_final")["mean"], rtol=1e-6)


def test_a_run_without_what_a_depth_needs_says_what_to_ask_for(qwen: ll.LensModel) -> None:
    sample = [ll.Sample(random_ids(6), 2)]
    with pytest.raises(SelectionError, match=r"settling_depth follows from js_to_final, which the run lacks: .* metrics='js_to_final'"):
        ll.analyze(qwen, sample, metrics="entropy").values("settling_depth")
    with pytest.raises(SelectionError, match="needs resid_post of all 4 layers; the run has 2 layers at resid_post"):
        ll.analyze(qwen, sample, metrics="settling_depth", layers=[1, 2], sites="resid_post").values("settling_depth")
    with pytest.raises(SelectionError, match=r"unknown metric 'settling': choose from entropy, .*, renyi_2"):
        ll.analyze(qwen, sample, metrics="settling")


def test_correct_responses_are_those_that_the_reward_scores_right(run: ll.Run) -> None:
    assert run.correct("boxed").tolist() == RIGHT
    old = Run(run.data.drop_vars("response_text"), run.manifest)
    with pytest.raises(SelectionError, match="kept no responses: analyse again"):
        old.correct("boxed")
    unknown = Run(run.data.assign_coords(ground_truth=("sample", np.array(["4", "", "1"], object))), replace(run.manifest))
    with pytest.raises(SelectionError, match=r"sample 0.1 has no ground truth"):
        unknown.correct("boxed")
