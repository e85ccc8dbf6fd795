"""Rows drawn to be decoded: which, how they are weighed, and that what is computed from them estimates what all rows give."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xarray as xr
from hypothesis import given
from hypothesis import strategies as st

import layerlens as ll
from layerlens.analysis.row_sample import draw_rows
from layerlens.plots.kit.caption import describe_runs
from layerlens.results import Run
from tests.support.synthetic_runs import make_run
from tests.support.tiny_models import random_ids

LENGTHS = (9, 30, 17, 24)
FIRST_RESPONSE = 14
"""The row of `uneven()` that predicts the first response token."""


def texts() -> list[ll.Sample]:
    return [ll.Sample(random_ids(n, n), 4) for n in LENGTHS]


def thinned(run: Run, most: int, draw: int) -> Run:
    """The run with at most so many rows of each sample; every `draw` is another."""
    keep, weights = [], []
    for index in range(run.n_samples):
        rows = np.flatnonzero(run.data["sample"].values == index)
        drawn, weight = draw_rows(rows, run.data["in_response"].values[rows].astype(bool), most, 1000 * draw + index)
        keep.append(drawn)
        weights.append(weight)
    data = run.data.isel(token=np.concatenate(keep)).assign_coords(weight=("token", np.concatenate(weights)))
    return Run(data.assign_attrs(tokens_per_sample=most), run.manifest)


def uneven() -> Run:
    """Samples of very different length whose longer ones have more entropy: what weights are for."""
    run = make_run([1.0, -1.0], samples=6, tokens=60, noise=0.1)
    sample, position = run.data["sample"].values, run.data["position"].values
    short = run.data.isel(token=np.flatnonzero(position < 20 + 8 * sample))
    entropy = short["entropy"] + 0.5 * short["sample"] + 0.02 * short["position"]
    return Run(short.assign(entropy=entropy.astype(np.float32)), run.manifest)


@given(st.integers(1, 60), st.integers(0, 60), st.integers(1, 40), st.integers(0, 10**6))
def test_a_draw_is_a_nested_weighted_subset(n: int, response: int, most: int, index: int) -> None:
    rows = np.arange(3, 3 + n)
    in_response = np.arange(n) < response
    drawn, weight = draw_rows(rows, in_response, most, index)
    assert (np.diff(drawn) > 0).all()
    inside = np.isin(drawn, rows[in_response])
    for stratum, chosen in ((in_response.sum(), inside), ((~in_response).sum(), ~inside)):
        assert chosen.sum() == min(most, stratum)
        assert weight[chosen].sum() == pytest.approx(stratum)
    assert set(drawn) <= set(draw_rows(rows, in_response, 2 * most, index)[0]), "a larger draw holds the smaller"
    longer = draw_rows(np.arange(3, 3 + 2 * n), np.arange(2 * n) < response, most, index)[0]
    assert set(longer[np.isin(longer, rows)]) <= set(drawn), "rows keep their place in the queue whatever follows"


def test_every_row_is_drawn_as_often_as_any_other() -> None:
    """Over 4,000 samples, each of 20 rows is among the 5 drawn in a quarter of them (4 standard errors), and neighbours no oftener."""
    chosen = np.zeros((4000, 20), bool)
    for index in range(len(chosen)):
        chosen[index, draw_rows(np.arange(20), np.ones(20, bool), 5, index)[0]] = True
    assert np.abs(chosen.mean(0) - 0.25).max() < 4 * np.sqrt(0.25 * 0.75 / 4000)
    both = (chosen[:, 1:] & chosen[:, :-1]).mean()
    assert both == pytest.approx(5 / 20 * 4 / 19, abs=4 * np.sqrt(0.0526 * 0.9474 / 4000 / 19))


@pytest.mark.parametrize("over", ["sample", "token"])
@pytest.mark.parametrize("rows", ["response", "all"])
def test_means_of_drawn_rows_are_unbiased(over: Any, rows: Any) -> None:
    run = uneven()
    truth = run.mean("entropy", over=over, rows=rows, resamples=2)["mean"].values
    draws = np.stack([thinned(run, 4, draw).mean("entropy", over=over, rows=rows, resamples=2)["mean"].values for draw in range(400)])
    error = draws.std(0, ddof=1) / np.sqrt(len(draws))
    assert (np.abs(draws.mean(0) - truth) < 4 * error).all()
    token = run.mean("entropy", over="token", rows=rows, resamples=2)["mean"].values
    alike = [Run(thinned(run, 4, draw).data.drop_vars("weight"), run.manifest) for draw in range(100)]
    unweighted = [each.mean("entropy", over="token", rows=rows, resamples=2)["mean"].values for each in alike]
    assert (np.abs(np.mean(unweighted, axis=0) - token) > 8 * error).all(), "the weights are needed"


def test_the_first_rows_are_dropped_by_position_not_by_rank() -> None:
    run = uneven()
    drawn = thinned(run, 5, 0)
    assert run.data["position"].values[run.row_mask()].min() == FIRST_RESPONSE
    dropped = drawn.row_mask() & ~drawn.row_mask(drop_first=12)
    response = drawn.data["in_response"].values == 1
    np.testing.assert_array_equal(dropped, response & (drawn.data["position"].values < FIRST_RESPONSE + 12))
    assert dropped.any()


@pytest.mark.parametrize("rows", ["response", "all"])
def test_drawn_rows_have_the_values_that_all_rows_have(qwen: ll.LensModel, rows: Any, tmp_path: Path) -> None:
    options: dict[str, Any] = {"rows": rows, "top_k": 2, "kl_from_layer": 1}
    whole = ll.analyze(qwen, texts(), **options)
    drawn = ll.analyze(qwen, texts(), tokens_per_sample=6, **options, out=tmp_path / "run", batch_tokens=40)
    key = ["sample", "position"]
    at = {tuple(place): i for i, place in enumerate(zip(*(whole.data[k].values for k in key), strict=True))}
    take = [at[place] for place in zip(*(drawn.data[k].values for k in key), strict=True)]
    for name, variable in drawn.data.data_vars.items():
        expected = whole.data[name].values[take] if "token" in variable.dims else whole.data[name].values
        np.testing.assert_allclose(variable.values, expected, rtol=1e-4, atol=1e-5, err_msg=str(name))
    others = 4 if rows == "all" else 0  # three that predict the prompt, and the last, which predicts nothing
    assert drawn.data.sizes["token"] == sum(min(6, n - 4) + others for n in LENGTHS)
    assert drawn.tokens_per_sample == drawn.data.attrs["tokens_per_sample"] == drawn.manifest.config.tokens_per_sample == 6
    assert "tokens decoded per sample: up to 6" in describe_runs(drawn, drawn.mean("entropy").attrs)
    assert "tokens decoded per sample: up to 6 / all" in describe_runs([drawn, whole], drawn.mean("entropy").attrs)
    again = ll.analyze(qwen, texts(), tokens_per_sample=6, **options)
    np.testing.assert_array_equal(again.data["position"], drawn.data["position"], "the draw does not know the batch")


def test_a_draw_of_all_rows_is_the_whole_run(qwen: ll.LensModel) -> None:
    whole, drawn = ll.analyze(qwen, texts(), rows="response"), ll.analyze(qwen, texts(), rows="response", tokens_per_sample=100)
    assert drawn.tokens_per_sample is None
    assert "decoded" not in describe_runs(drawn, drawn.mean("entropy").attrs)
    assert "weight" not in whole.data.coords, "nothing is weighted if nothing is drawn"
    assert (whole.manifest.config.tokens_per_sample, whole.manifest.config.precision) == (None, None)
    for over in ("sample", "token"):
        xr.testing.assert_equal(whole.mean("entropy", over=over), drawn.mean("entropy", over=over))
    for run in (whole, drawn):
        for number, text in enumerate(texts()):
            assert tuple(run.sample(number)["text_token_id"].values) == text.token_ids, "the whole text is kept, whatever is decoded"
