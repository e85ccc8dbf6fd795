"""An entropy change under norm none is the sum of what the policy's shape and what the scale of its logits contribute."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

import layerlens as ll
from layerlens.errors import SelectionError
from tests.support.float64_reference import plain_metrics
from tests.support.tiny_models import random_ids, tiny_model

SAMPLES = [ll.Sample(random_ids(8 + index, index), 3) for index in range(4)]
MODULES = ["attn", "ffn", "layer"]


@pytest.fixture(scope="module")
def pair(lens: ll.LensModel) -> tuple[ll.Run, ll.Run]:
    return ll.analyze(lens, SAMPLES), ll.analyze(lens, SAMPLES, norm="matched")


def test_scale_and_shape_add_up_to_the_change_and_are_those_of_float64(lens: ll.LensModel, pair: tuple[ll.Run, ll.Run]) -> None:
    parts = ll.scale_shape(*pair, rows="all", over="token")
    assert parts["module"].values.tolist() == MODULES
    mean = parts["mean"]
    np.testing.assert_allclose(mean.sel(part="shape") + mean.sel(part="scale"), mean.sel(part="change"), atol=1e-6, rtol=0)
    exact = {
        norm: np.concatenate(
            [plain_metrics(lens.parts.model, list(s.token_ids), norm, 1, spread=pair[1].spread)["entropy_change"].numpy() for s in SAMPLES]
        ).mean(0)
        for norm in ("none", "matched")
    }
    np.testing.assert_allclose(mean.sel(part="change"), exact["none"], atol=1e-5, rtol=0)
    np.testing.assert_allclose(mean.sel(part="shape"), exact["matched"], atol=1e-5, rtol=0)
    np.testing.assert_allclose(mean.sel(part="scale"), exact["none"] - exact["matched"], atol=2e-5, rtol=0)
    assert float(abs(mean.sel(part="scale")).max()) > 0.05


def test_intervals_are_those_of_the_runs_and_pair_the_samples(pair: tuple[ll.Run, ll.Run]) -> None:
    parts = ll.scale_shape(*pair, seed=3)
    for run, part in zip(pair, ("change", "shape"), strict=True):
        expected = run.mean("entropy_change", seed=3)
        for end in ("mean", "low", "high"):
            np.testing.assert_allclose(parts[end].sel(part=part), expected[end].sel(module=MODULES))
    itself = ll.scale_shape(pair[0], replace(pair[1], data=pair[0].data))
    assert float(abs(itself[["mean", "low", "high"]].sel(part="scale").to_array()).max()) == 0
    assert parts.attrs["spread"] == pair[1].spread
    assert (parts.attrs["samples"], parts.attrs["level"], parts.attrs["units"]) == (4, 0.95, "nats")


def test_rank_correlation_is_of_entropy_with_the_spread_of_logits(pair: tuple[ll.Run, ll.Run]) -> None:
    parts = ll.scale_shape(*pair, rows="response")
    data = pair[0].data.isel(token=pair[0].row_mask("response")).sel(site=["attn_in", "attn_out"])
    frame = pd.DataFrame({name: data[name].values.ravel() for name in ("entropy", "logit_sd")}).rank()
    assert float(parts["rank_correlation"].sel(module="attn")) == pytest.approx(frame["entropy"].corr(frame["logit_sd"]))
    assert float(parts["rank_correlation"].sel(module="attn")) < -0.5
    answer = ll.scale_shape(*pair, segment="answer")
    np.testing.assert_allclose(answer["mean"], parts["mean"])
    assert answer["rank_correlation"].equals(parts["rank_correlation"])
    without = replace(pair[0], data=pair[0].data.drop_vars("logit_sd"))
    assert np.isnan(ll.scale_shape(without, pair[1])["rank_correlation"]).all()


def test_runs_that_do_not_pair_are_refused(pair: tuple[ll.Run, ll.Run], qwen: ll.LensModel) -> None:
    none, matched = pair
    with pytest.raises(SelectionError, match="by a run with norm none and one with norm matched; got norms matched and none"):
        ll.scale_shape(matched, none)
    with pytest.raises(SelectionError, match="the runs read other tokens: analyse the same texts twice"):
        ll.scale_shape(none, replace(matched, data=matched.data.assign_coords(token_id=matched.data["token_id"] + 1)))
    other = ll.LensModel.wrap(tiny_model("qwen3", seed=5))
    with pytest.raises(SelectionError, match="the runs differ in weights"):
        ll.scale_shape(ll.analyze(qwen, SAMPLES), ll.analyze(other, SAMPLES, norm="matched"))
